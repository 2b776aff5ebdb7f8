"""What the terminal shows of a comparison."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from ssat_ray.comparison.analysis import Question, analyse
from ssat_ray.comparison.outcomes import Reading
from ssat_ray.comparison.sources import read_sources
from ssat_ray.comparison.table import comparison_lines, outcomes_table


def printed(content: dict[str, Any]) -> str:
    out = io.StringIO()
    Console(file=out, width=250).print(outcomes_table(content))
    return out.getvalue()


@pytest.fixture(scope="module")
def content(invented: Any) -> dict[str, Any]:
    reading = read_sources(["grid", "attacked"], invented.runs)
    return analyse(reading, Question(watts=100.0, runs=invented.runs))


def test_a_line_an_outcome_in_the_order_of_time(content: dict[str, Any]) -> None:
    head, *lines = printed(content).splitlines()
    for column in ("PGD-40 %", "AutoAttack %", "total time", "vs random", "vs full", "kWh"):
        assert column in head
    assert "GPU-h" not in head
    entries = sorted(content["outcomes"], key=lambda entry: entry["time"])
    for line, entry in zip(lines, entries, strict=True):
        assert line.startswith(entry["name"])
        assert f"{entry['pgd']['mean']:.1f} [{entry['pgd']['low']:.1f}" in line
        assert ("≥ " in line) == (entry["row"] == "full")


def test_lines_say_what_is_settled_and_what_is_recommended(content: dict[str, Any]) -> None:
    text = "\n".join(comparison_lines(content))
    assert "8 degrees of freedom" in text
    assert "effect of select.ratio on the mean: 0.1: −" in text
    assert "of 12 differences to random and full are not settled" in text
    assert "grid/odd has no results, failed: train failed: no space left" in text
    assert "computing time of all artefacts, each once" in text and "kWh" in text
    assert f"recommended: {content['recommended']['reason'][0]}" in text
    assert "as a preset: ssat export grid/" in text


def test_what_is_unknown_is_left_out(outcome: Any) -> None:
    first = outcome("pcs", 80.0, labelled=None, settings={"a.k": 1, "a.l": 1}, source="file://x")
    second = outcome("pcs", 81.0, gpu_seconds=7200.0, settings={"a.k": 2, "a.l": 2})
    content = analyse(Reading(outcomes=(first, second), spent=None), Question())
    table = printed(content)
    assert "GPU-h" in table and "kWh" not in table and "vs random" not in table
    assert " – " in table and " 2 " in table
    text = "\n".join(comparison_lines(content))
    assert "effect of a.k: it varies together with other settings" in text
    assert "computing time" not in text and "not settled; the page" not in text
