"""The report of a selection: every number on it, nothing outside it, and a sentence where parts are missing."""

import re
from html.parser import HTMLParser

import pytest

from ssat_ray.report.selection import headline, peak_bytes, render_selection, rise_in_words
from ssat_ray.report.words import count, duration, size

VOID = {"meta", "img", "br", "path", "use"}
EMPTY = {"sessions": [], "memory": None, "clusters": [], "scores": []}
NO_VALUES = {"peak_bytes": None, "second_quarter_bytes": None, "last_quarter_bytes": None}


class Page(HTMLParser):
    """Checks that tags close in order; collects visible text and tags with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.pieces: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.feed(page)
        self.close()
        assert self.open == []
        self.text = re.sub(r"\s+", " ", " ".join(self.pieces))

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
        if self.open and self.open[-1] != "style":
            self.pieces.append(data)


def plain(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def test_every_number_of_the_results_stands_on_the_page(selection_results):
    results = selection_results()
    text = Page(render_selection(results)).text
    for stage in results["stages"][1:]:
        assert f"{stage['label']} {duration(stage['seconds'])}" in text
        rate = count(stage["rows"] / (stage["seconds"] + stage["startup_seconds"]))
        assert plain(f"{count(stage['rows'])} {rate}") in text
        sizes = (stage["peak_pss_bytes"], stage["bytes_read"], stage["bytes_written"])
        assert f"{' '.join(map(size, sizes))} {stage['digest'][:12]}" in text
    choice, cluster = results["selections"][0], results["clusters"][0]
    images = ("images", "of_images")
    assert plain(" ".join(count(choice[key]) for key in images)) + " 10 %" in text
    assert plain(f"{count(4e6)} {count(6e6)} 2.141 37 {count(1234)} 640 MiB") in text
    assert plain(f"10 {count(5e6)} {len(cluster['history'])} yes 3.207 × 10⁸ 19 % 1 %") in text
    assert plain(f"{count(91e6)} images (5 GiB), then {count(9e6)} images (1 GiB)") in text
    for shown in ("0123abcd4567", "AMD EPYC", "2.60.0", '"ratio": 0.1', "1 × 8 × 8", "scale-100m"):
        assert shown in text
    assert "To know before reading" not in text


def test_the_total_adds_what_is_known_and_takes_the_largest_peak(selection_results):
    text = Page(render_selection(selection_results())).text
    total = f"{duration(1500.25)} {duration(100)} – – {size(6 * 2**28)} 25 GiB 35 MiB"
    assert f"all stages {total}" in text


def test_the_headline_says_what_was_kept_in_what_time_and_memory(selection_results):
    results = selection_results()
    expected = (
        "10,000,000 of 100,000,000 images kept: 4,000,000 nearest the boundary, "
        "6,000,000 at random; 23 min 04 s; at most 6 GiB."
    )
    assert headline(results, ",") == expected
    assert plain(headline(results)) in Page(render_selection(results)).text


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ([], "Nothing selected of 100,000,000 images; "),
        ([{"row": "random", "boundary": 0}], "kept: 10,000,000 at random; "),
        ([{"boundary": 10_000_000}], "kept: 10,000,000 nearest the boundary; "),
        ([{"row": "easy"}], "kept: 4,000,000 farthest from the boundary, 6,000,000 at random; "),
        ([{}, {"seed": 1}], "kept by each of 2 selections: 4,000,000 nearest"),
        ([{}, {"row": "random", "boundary": 0}], "images kept by each of 2 selections; 23 min"),
        ([{}, {"images": 5_000_000}], "5,000,000 to 10,000,000 of 100,000,000 images kept by"),
        ([{"images": 0, "of_images": 0, "boundary": 0}], "0 of 0 images kept; "),
    ],
)
def test_the_headline_fits_every_set_of_selections(selection_results, choice, choices, expected):
    results = selection_results(selections=[choice(**changes) for changes in choices])
    assert expected in headline(results, ",")
    assert plain(headline(results)) in Page(render_selection(results)).text


def test_the_peak_comes_from_the_samples_where_there_are_too_few_for_a_summary(selection_results):
    sessions = [{"started": "2026-05-04T10:00:00", "samples": [[5.0, 2**30, ""], [10.0, 7, "x"]]}]
    results = selection_results(sessions=sessions, memory=None)
    assert peak_bytes(results) == 2**30
    assert "at most 1 GiB" in headline(results)
    assert peak_bytes(selection_results(**EMPTY)) is None
    assert "at most" not in headline(selection_results(**EMPTY))


@pytest.mark.parametrize(
    ("rise", "expected"),
    [
        (0.02, "2 % above the 5 GiB of the second quarter: flat"),
        (-0.1, "10 % below the 5 GiB of the second quarter: flat"),
        (0.101, "10.1 % above the 5 GiB of the second quarter: growing"),
        (-0.5, "50 % below the 5 GiB of the second quarter: falling"),
    ],
)
def test_the_rise_is_said_in_words(selection_results, rise, expected):
    memory = selection_results()["memory"] | {"rise": rise}
    assert expected in plain(rise_in_words(memory))
    assert expected in Page(render_selection(selection_results(memory=memory))).text


@pytest.mark.parametrize("memory", [None, {"rise": None, **NO_VALUES}])
def test_too_few_samples_are_said_in_words(selection_results, memory):
    text = Page(render_selection(selection_results(memory=memory))).text
    assert "too few samples" in text
    assert "coloured lines" not in text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"sessions": [], "memory": None}, "No memory was sampled"),
        ({"sessions": [{"started": "", "samples": []}], "memory": None}, "No memory was sampled"),
        ({"clusters": []}, "No method that needs clusters ran"),
        ({"scores": []}, "No method that scores the pool ran"),
        ({"selections": []}, "Nothing was selected"),
        ({"stages": [], **EMPTY}, "No stage was recorded"),
        ({"total_wall_seconds": 0.0, **EMPTY}, "No memory was sampled"),
    ],
)
def test_what_is_missing_is_replaced_by_a_sentence(selection_results, changes, expected):
    page = render_selection(selection_results(**changes))
    text = Page(page).text
    assert expected in text
    assert expected not in Page(render_selection(selection_results())).text
    assert "None" not in text and "nan" not in text


def test_clusters_without_history_or_shares_still_stand_in_the_table(selection_results):
    results = selection_results()
    results["clusters"][0] |= {"history": [], "shares": [], "converged": False}
    text = Page(render_selection(results)).text
    assert plain(f"{count(5e6)} 0 no: the limit of iterations came first – – –") in text
    assert "convergence" not in text.replace("convergence:", "")


def test_warnings_and_shards_left_out_stand_at_the_top(selection_results, choice):
    bad = {"file": "data/part-00017.parquet", "rows": 100_000, "reason": "checksum differs"}
    other = {"file": "data/part-00018.parquet", "rows": None, "reason": "truncated"}
    results = selection_results(
        selections=[choice(quarantined=[bad]), choice(seed=1, quarantined=[bad])],
        warnings=["something else"],
    )
    results["stages"][3]["quarantined"] = [bad, other]
    text = Page(render_selection(results)).text
    top = text[: text.index("1 Stages")]
    said = f"2 shards could not be read, and {count(1e5)} images were left out"
    assert plain(said) in top and "something else" in top
    assert plain(f"part-00017.parquet {count(1e5)} select, cluster checksum differs") in text
    assert "part-00018.parquet – cluster truncated" in text


def test_nothing_lies_outside_the_file_and_figures_have_a_text(selection_results):
    page = render_selection(selection_results())
    assert not re.search(r"https?://|@import|url\((?!#)|#0000[0-9a-f]{2}\b", page)
    tags = Page(page).tags
    for tag, attributes in tags:
        assert tag not in ("script", "link", "iframe", "object", "img")
        assert attributes.get("href", "#").startswith("#")
    charts = [attributes for tag, attributes in tags if tag == "svg"]
    assert len(charts) == 5
    assert all(len(chart["aria-label"]) > 20 for chart in charts)


def test_ids_are_unique_and_links_lead_somewhere(selection_results):
    results = selection_results()
    results["clusters"] = [{**results["clusters"][0], "seed": seed} for seed in (0, 1)]
    results["scores"] = results["scores"] * 2
    tags = Page(render_selection(results)).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [a["href"][1:] for _, a in tags if a.get("href", "").startswith("#")]
    assert set(links) <= set(ids)


def test_tables_stand_in_a_box_that_scrolls(selection_results):
    page = render_selection(selection_results())
    assert page.count("<table") == page.count('<div class="scroll" tabindex="0"><table') == 3


def test_special_characters_are_escaped(selection_results, choice):
    nasty = "<script>alert('1')</script>&\""
    bad = {"file": nasty, "rows": 1, "reason": nasty}
    results = selection_results(
        name=nasty,
        preset=nasty,
        git_commit=nasty,
        warnings=[nasty],
        config={nasty: nasty},
        selections=[choice(row=nasty, quarantined=[bad])],
    )
    results["machine"] = results["machine"] | {"cpu": nasty}
    results["clusters"][0]["method"] = results["scores"][0]["row"] = nasty
    results["stages"][1] |= {"stage": nasty, "label": nasty, "digest": nasty}
    results["sessions"][0]["samples"][3][2] = nasty
    page = render_selection(results)
    assert "<script" not in page
    assert f"{nasty} 1 select {nasty}" in Page(page).text


def test_more_stages_than_colours_still_render(selection_results):
    results = selection_results()
    results["sessions"][0]["samples"] = [[5.0 * i, 2**30, f"stage-{i}"] for i in range(1, 31)]
    assert "var(--s11)" in render_selection(results)


def test_rendering_twice_gives_the_same_bytes(selection_results):
    assert render_selection(selection_results()) == render_selection(selection_results())
