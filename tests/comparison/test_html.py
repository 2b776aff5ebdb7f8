"""compare.html: complete, self-contained, readable without scripts, safe against what others named."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from ssat_ray.comparison.analysis import Question, analyse
from ssat_ray.comparison.figures import _side_by_side
from ssat_ray.comparison.html import grid, render
from ssat_ray.comparison.outcomes import Reading
from ssat_ray.comparison.sources import read_sources
from ssat_ray.report.words import count, duration, signed

VOID = {"meta", "img", "br", "path", "use"}


class Tree(HTMLParser):
    """Checks that tags close in order; collects visible text and tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", " ".join(Tree(page).text))


def shown(reading: Reading, **question: Any) -> tuple[dict[str, Any], str]:
    content = analyse(reading, Question(**question))
    return content, render(content, "a name", "2026-05-04 10:20:00+00:00")


@pytest.fixture(scope="module")
def cases(invented: Any, outcome: Callable[..., Any]) -> dict[str, tuple[dict[str, Any], str]]:
    seed = outcome("pcs", 80.0, peak_memory=None, labelled=None, gpu_seconds=None)
    aliased = [
        outcome("pcs", 80.0 + i, 81.0, settings={"cluster.k": i, "select.ratio": i})
        for i in range(3)
    ]
    gpus = [replace(one, gpu_seconds=7200.0) for one in aliased]
    return {
        "sweep": shown(read_sources(["grid", "attacked"], invented.runs), watts=200.0, price=0.3),
        "run": shown(read_sources(["plain"], invented.runs)),
        "one outcome": shown(Reading(outcomes=(seed,), spent=None)),
        "settings together": shown(Reading(outcomes=tuple(gpus))),
        "watts only": shown(read_sources(["plain"], invented.runs), watts=100.0),
        "by validation": shown(read_sources(["grid"], invented.runs), attack="validation"),
    }


NAMES = ("sweep", "run", "one outcome", "settings together", "watts only", "by validation")


@pytest.fixture(params=NAMES)
def case(request: Any, cases: Any) -> tuple[dict[str, Any], str]:
    found: tuple[dict[str, Any], str] = cases[request.param]
    return found


def test_every_outcome_shows_its_numbers(case: Any) -> None:
    content, page = case
    text = text_of(page)
    for entry in content["outcomes"]:
        assert entry["name"] in text
        assert f"{entry[content['attack']]['mean']:.1f}" in text
        assert f"{entry['accuracy']['pgd']['mean']:.1f}" in text
        assert duration(entry["time"]) in text
        if entry["images"] is not None:
            assert count(entry["images"]).replace("\u202f", " ") in text
        for row in ("random", "full"):
            if row in entry["differences"]:
                difference = entry["differences"][row]
                assert signed(difference["mean"]) in text
                if difference["low"] is not None:
                    assert f"{signed(difference['low'])} to {signed(difference['high'])}" in text
    for sentence in content["recommended"]["reason"]:
        assert re.sub(r"\s+", " ", sentence) in text
    for setting in content["effects"]["settings"]:
        assert setting["setting"] in text


def test_nothing_lies_outside_the_file_and_nothing_runs(case: Any) -> None:
    _, page = case
    assert not re.search(r"https?://", page)
    for tag, attributes in Tree(page).tags:
        assert tag not in ("script", "link", "iframe", "object", "img")
        assert re.match(r"#", attributes.get("href", "#"))
        assert not [name for name in attributes if name.startswith("on")]
    assert not re.search(r"@import|url\((?!#)", page)


def test_ids_are_unique_links_lead_somewhere_and_figures_have_names(case: Any) -> None:
    _, page = case
    tags = Tree(page).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [a["href"][1:] for _, a in tags if a.get("href", "").startswith("#")]
    assert set(links) <= set(ids)
    charts = [a for tag, a in tags if tag == "svg" and a.get("class") == "chart"]
    assert all(a["role"] == "img" and a["aria-label"] for a in charts)
    assert page.count("<table") == page.count('<div class="scroll" tabindex="0"><table')
    headers = [a for tag, a in tags if tag == "th"]
    assert all(a["scope"] in ("col", "row") for a in headers)


def test_colours_follow_the_scheme(case: Any) -> None:
    _, page = case
    assert "prefers-color-scheme: dark" in page
    body = page[page.index("</style>") :]
    assert not re.search(r"#[0-9a-f]{6}\b", body)


def test_the_sweep_shows_its_grid_its_effects_and_what_failed(cases: Any) -> None:
    content, page = cases["sweep"]
    text = text_of(page)
    assert "cluster.k downwards, select.ratio across" in text
    assert "grid/odd" in text and "no space left" in text
    assert "Every combination was run, and the intervals are over seeds" in text
    assert "against random" in text
    assert "over seeds and images" in text
    assert content["recommended"]["export"] in text
    assert (
        "kWh: 200 W, drawn while one outcome is made, over the total time, at a price of 0.3 a kWh."
        in text
    )
    assert "AutoAttack, %" in text and "1 of 2 seeds" in text
    found = grid(content)
    assert found is not None
    assert (found["down"], found["across"]) == ("cluster.k", "select.ratio")
    assert found["columns"] == ["0.1", "0.4"]
    assert [line for line, _ in found["lines"]] == ["5", "10", "20", "40"]
    assert found["lines"][3][1] == ["failed", "–"]
    below = [(row, [cell["name"] for cell in cells]) for row, cells in found["baselines"]]
    assert below == [("random", ["random ratio=0.1", "random ratio=0.4"]), ("full", ["full"] * 2)]
    for line, cells in found["lines"][:3]:
        for column, cell in zip(found["columns"], cells, strict=True):
            assert cell["name"] == f"lcs-km k={line} ratio={column}"


def test_axes_have_the_costs_that_were_measured(cases: Any) -> None:
    """Also where outcomes of nearly the same cost are drawn side by side."""
    content, _ = cases["sweep"]
    costs = np.array([entry["images"] for entry in content["outcomes"]], float)
    places = _side_by_side(costs, logarithmic=False)
    assert len(set(costs)) < len(costs) and len(set(places)) == len(costs)
    assert np.abs(places - costs).max() <= 0.016 * np.ptp(costs)
    many = np.repeat([100.0, 200.0, 2000.0], 40)
    moved = _side_by_side(many, logarithmic=True)
    assert np.abs(np.log(moved / many)).max() <= 0.016 * np.log(20)
    assert (np.diff(moved) > 0).all()


def test_what_is_missing_is_said(cases: Any) -> None:
    alone = text_of(cases["one outcome"][1])
    assert "is the only candidate" in alone and "No setting varies" in alone
    assert "Not recorded." in alone and "The rows random and full did not run" in alone
    together = text_of(cases["settings together"][1])
    assert "varies together with others" in together and "GPU-hours" in together
    assert grid(cases["settings together"][0]) is None and grid(cases["run"][0]) is None
    assert "With --watts and --price" in text_of(cases["run"][1])
    assert "kWh" in text_of(cases["watts only"][1])


def test_special_characters_are_escaped(outcome: Any) -> None:
    nasty = "<script>alert('1')</script>&\""
    one = outcome(
        "pcs", 80.0, 81.0, trials=(nasty,), source=nasty, machines=(nasty,), names={"pgd": nasty}
    )
    two = replace(one, accuracy={"pgd": {0: 79.0, 1: 79.5}}, settings={"a.b": nasty})
    three = replace(two, settings={"a.b": "x"}, accuracy={"pgd": {0: 78.0, 1: 79.5}})
    reading = Reading(outcomes=(one, two, three), warnings=((nasty, nasty),), commits=(nasty,))
    page = render(analyse(reading, Question()), nasty, nasty)
    assert "<script" not in page
    assert nasty in "".join(Tree(page).text)


def test_rendering_twice_gives_the_same_bytes(invented: Any) -> None:
    reading = read_sources(["grid"], invented.runs)
    assert shown(reading) == shown(reading)
