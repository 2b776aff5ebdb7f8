"""The report: complete, honest, self-contained, and safe against what others named."""

import dataclasses
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from ssat_ray.report.figures import GuidedData
from ssat_ray.report.html import render
from ssat_ray.report.words import count, duration, power_of_ten, signed, size, verdict

VOID = {"meta", "img", "br", "path", "rect", "use"}


class Tree(HTMLParser):
    """Checks that tags close in order; collects visible text, ids and links within the page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", " ".join(Tree(page).text))


GUIDED_ROW = "lcg-km"
SCORES = np.linspace(0, 4, 200)
GUIDED_DATA = GuidedData(
    np.zeros((30, 8, 8, 1), np.uint8),
    np.full((30, 8, 8, 1), 200, np.uint8),
    {"guide": (SCORES, SCORES / 2), "judge": (SCORES, SCORES / 1.5)},
)
CASES = {
    "three seeds": ({}, {}),
    "a guided row": (
        {"rows": ("none", "random", GUIDED_ROW)},
        {"guided": {GUIDED_ROW: GUIDED_DATA}},
    ),
    "one seed": ({"seeds": (0,), "autoattack": False}, {}),
    "no scored method": ({"rows": ("none", "full")}, {"methods": (), "show_method": None}),
    "only none": ({"rows": ("none",)}, {"methods": (), "show_method": None}),
}


@pytest.fixture(params=CASES, scope="module")
def case(request, results, figure_data):
    """Results of one kind, and the page that shows them."""
    kind, shown = CASES[request.param]
    content = results(**kind)
    return content, render(content, figure_data(num_pool=400, **shown))


@pytest.fixture(scope="module")
def page(case):
    return case[1]


def test_every_row_shows_its_numbers(case):
    content, page = case
    text = text_of(page)
    for row in content["rows"]:
        assert row["row"] in text
        for cell in row["accuracy"].values():
            assert f"{cell['mean']:.1f}" in text
            assert f"{cell['low']:.1f} – {cell['high']:.1f}" in text
        by_class = row["accuracy"]["pgd"]["by_class"]
        assert " ".join(f"{value:.1f}" for value in by_class) in text
        assert f"{by_class[3]:.1f} (class 3)" in text
        steps = row["steps"]["total"]
        assert count(sum(steps) / len(steps)).replace("\u202f", " ") in text
        assert duration(row["seconds"]["total"]) in text
        assert power_of_ten(row["flops"]) in text
        assert size(row["peak_memory_bytes"]["max"]) in text
        if "random" in row["differences"]:
            assert signed(row["differences"]["random"]["mean"]) in text


def test_guided_images_are_judged_by_both_and_shown_before_and_after(results, figure_data):
    content = results(rows=("none", "random", GUIDED_ROW))
    page = render(content, figure_data(num_pool=300, guided={GUIDED_ROW: GUIDED_DATA}))
    text = text_of(page)
    assert "<b>51.7</b>" in page and "<b>41.3</b>" in page
    assert "a judge it never saw" in text and "96.2 [98.5]" in text and "0.720 [0.810]" in text
    assert "Images made near the boundary" in text and page.count("guided images of the same") == 1
    assert "lcg-km, seen by the guide" in text and "lcg-km, seen by a judge it never saw" in text
    assert page.count("images of the base model and guided ones") == 2
    assert "1.10 [1.21]" in text and "0.77 1.25 96.2 [98.5]" in text, "density, real images' median"
    assert "lcg-km 0.5625 1.125 2.25 base model 0.375 0.75 1.5 validation images 0.75 1.5 3" in text
    assert (
        "lcg-km the guide 7.0 7.0 7.0 7.0 7.0 13.0" in text and "real images the guide 10.0" in text
    )
    assert "15 Glossary" in text
    without = render(results(), figure_data(num_pool=300))
    assert "Images made near" not in without and "14 Glossary" in text_of(without)


def test_nothing_lies_outside_the_file(page):
    assert not re.search(r"https?://", page)
    tree = Tree(page)
    for tag, attributes in tree.tags:
        assert tag not in ("script", "link", "iframe", "object")
        assert attributes.get("src", "data:").startswith("data:")
        assert re.match(r"#|data:", attributes.get("href", "#"))
        if tag == "img":
            assert attributes["alt"]
    assert not re.search(r"@import|url\((?!#)", page)


def test_ids_are_unique_and_links_lead_somewhere(page):
    tags = Tree(page).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [a["href"][1:] for _, a in tags if a.get("href", "").startswith("#")]
    assert set(links) <= set(ids)


def test_tables_stand_in_a_box_that_scrolls(page):
    assert page.count("<table") == page.count('<div class="scroll" tabindex="0"><table')


def test_autoattack_for_fewer_seeds_says_so_and_absent_stays_out(results, figure_data):
    data = figure_data(num_pool=300)
    assert "1 of 3 seeds" in text_of(render(results(), data))
    assert "AutoAttack" not in render(results(autoattack=False), data)
    some = results()
    del some["rows"][0]["accuracy"]["autoattack"]
    assert "AutoAttack" in render(some, data)


def test_figures_of_a_scored_method_are_left_out_with_a_sentence(results, figure_data):
    content = results(rows=("none", "full"))
    text = text_of(render(content, figure_data((), None, 300)))
    assert text.count("No method that scores") == 4
    assert "Has the generator memorised?" in text


def test_memorisation_counts_the_share_below_the_first_percentile(results, figure_data):
    data = figure_data(num_pool=400)
    data.neighbour_real[:] = range(700)
    data.neighbour_generated[:] = 500.0
    data.neighbour_generated[:10] = 0.5
    text = text_of(render(results(), data))
    assert "2.5 % of the generated images are nearer than 6.99" in text
    assert "is 500 for generated and 350 for real" in text


def test_special_characters_are_escaped(results, figure_data):
    content = results()
    nasty = "<script>alert('1')</script>&\""
    content["name"] = content["data"]["dataset"] = content["machine"]["cpu"] = nasty
    content["warnings"] = content["rows"][0]["recipe"] = [nasty]
    content["config"]["note"] = content["stages"][0]["label"] = nasty
    content["rows"][0]["accuracy"]["pgd"]["name"] = nasty
    page = render(content, figure_data(num_pool=300))
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert nasty in "".join(Tree(page).text)


def test_how_it_was_run_is_recorded(results, figure_data):
    content = results()
    text = text_of(render(content, figure_data(num_pool=300)))
    for shown in ("gloo", "4711, 4712", "5201, 5202", "0123abcd4567", "AMD EPYC", "2.60.0"):
        assert shown in text
    assert all(stage["digest"][:12] in text for stage in content["stages"])
    assert '"boundary_fraction": 0.4' in text


def test_rendering_twice_gives_the_same_bytes(results, figure_data):
    data = figure_data(num_pool=300)
    assert render(results(), data) == render(results(), data)


def test_colour_images_of_another_size(results, figure_data):
    data = figure_data(num_pool=300)
    data = dataclasses.replace(
        data, images=data.images.repeat(3, axis=-1), real_images=data.real_images.repeat(3, axis=-1)
    )
    assert "data:image/png" in render(results(), data)


def test_the_verdict_stands_on_the_page(results, figure_data):
    single = results(seeds=(0,))
    assert verdict(single) in text_of(render(single, figure_data(num_pool=300)))


def test_a_plateau_that_was_not_reached_is_a_bound(results, figure_data):
    data, content = figure_data(num_pool=300), results()
    assert "≥" not in text_of(render(content, data)).replace("marked ≥", "")
    content["rows"][0]["steps"]["hit_max_steps"] = [True, True, True]
    content["rows"][1]["steps"]["hit_max_steps"] = [False, True, True]
    text = text_of(render(content, data))
    assert "≥ 720 limit ≥ 900" in text
    assert "≥ 1 048 limit 2/3 ≥ 1 310" in text
    assert "train.max_steps ended the training before its plateau" in text


def test_costs_say_what_they_count(results, figure_data):
    content = results()
    content["rows"][0]["seconds_all_recipes"] += 147
    content["rows"][3]["train_rise_bytes"] = [2**20, 3 * 2**20, None]
    text = text_of(render(content, figure_data(num_pool=300)))
    assert "Choosing none's recipe took 2 min 27 s more, mean over seeds" in text
    assert text.count("recipe took") == 1
    assert text.count("+3 MiB") == 1
    assert "Wall time" not in text
    assert "15 min 11 s, summed over artefacts" in text


def test_where_the_rows_were_made_is_named(results, figure_data):
    content, data = results(), figure_data(num_pool=300)
    content["git_commit"] = None
    content["made_by"] = {"commits": ["aaa", "bbb"], "machines": ["EPYC", "Xeon"]}
    text = text_of(render(content, data))
    assert "Trained and attacked aaa , bbb on EPYC; Xeon" in text
    assert "None" not in text
    content["made_by"] = {"commits": [], "machines": []}
    assert "Trained and attacked" not in text_of(render(content, data))
