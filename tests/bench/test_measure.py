"""Alternation and how it is shown."""

from __future__ import annotations

import pytest

from ssat_ray.bench.measure import HEADER, Comparison, alternate


def test_candidates_take_turns() -> None:
    calls: list[str] = []
    seconds = alternate({"ours": lambda: calls.append("o"), "bare": lambda: calls.append("b")}, 3)
    assert calls == ["o", "b"] * 3
    assert {name: len(found) for name, found in seconds.items()} == {"ours": 3, "bare": 3}
    assert all(value >= 0 for found in seconds.values() for value in found)


def test_a_line_shows_medians_extremes_and_the_ratio() -> None:
    line = Comparison("case", [2.0, 1.0, 4.0], [3.0, 5.0, 4.0], 0.85, {"rows/s": "7"}).markdown()
    assert line == "| case | 2 (1-4) | 4 (3-5) | 2.00 | 0.85 | rows/s 7 |"
    assert HEADER.splitlines()[0].count("|") == line.count("|")
    assert Comparison("case", [1.0], [0.5]).ratio == pytest.approx(0.5)


@pytest.mark.parametrize(("bare", "shown"), [(1.698, "1.698"), (1.701, "1.701"), (1.75, "1.75")])
def test_a_ratio_near_its_bar_has_three_decimals(bare: float, shown: str) -> None:
    assert f"| {shown} | 1.7 |" in Comparison("case", [1.0], [bare], 1.7).markdown()
    assert f"| {bare:.2f} |  |" in Comparison("case", [1.0], [bare]).markdown()
