"""bench guidance: the tables and the figure of invented reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from ssat_ray.bench.guidance import PANELS, Point, draw, interval, table, table_by_seed


def _report(near: float, coverage: float) -> dict[str, Any]:
    seen = {
        "near": near,
        "median_ratio": 0.8,
        "guided": {"agreement": 0.95, "coverage": coverage, "confidence": 0.7},
        "base": {"agreement": 0.99, "coverage": 0.5, "confidence": 0.75},
    }
    return {"judge": seen, "guide": seen}


def _points() -> list[Point]:
    reports = {
        0.0: {3: _report(0.2, 0.5), 7: _report(0.22, 0.5)},
        0.2: {3: _report(0.4, 0.4), 7: _report(0.5, 0.45)},
    }
    return [
        Point.of("lcg-km", how, judge, weight, found)
        for how in ("fine-tuning", "sampling")
        for judge in ("judge", "guide")
        for weight, found in reports.items()
    ]


def test_a_line_has_means_with_students_intervals_over_seeds() -> None:
    lines = table(_points()).splitlines()
    assert len(lines) == 2 + 8 and {line.count("|") for line in lines} == {11}
    # t = 12.706 at one degree of freedom, times half the difference of two seeds
    expected = (
        "| `lcg-km` | fine-tuning | judge | 0.2 | 45.0 ± 63.5 | 0.80 ± 0.00 | 95.0 ± 0.0 [99.0] "
        "| 0.43 ± 0.32 [0.50] | 0.85 ± 0.64 | -0.050 ± 0.000 |"
    )
    assert lines[3] == expected


def test_every_seed_has_its_value_and_is_held_against_the_bars() -> None:
    """Of the two seeds one has 0.8 of the base images' coverage; without guidance none is near the boundary."""
    lines = table_by_seed(_points()).splitlines()
    assert len(lines) == 2 + 8 and {line.count("|") for line in lines} == {11}
    assert lines[0].endswith(
        "near the boundary %, from 40 | median score / base | label agreement %, from 95 "
        "| coverage / base, from 0.85 | confidence - base | seeds that reach all |"
    )
    assert lines[2].endswith(
        "| 20.0, 22.0 | 0.80, 0.80 | 95.0, 95.0 | 1.000, 1.000 | -0.0500, -0.0500 | none |"
    )
    assert lines[3].endswith(
        "| 40.0, 50.0 | 0.80, 0.80 | 95.0, 95.0 | 0.800, 0.900 | -0.0500, -0.0500 | 7 |"
    )


@pytest.mark.parametrize(
    ("near", "agreement", "coverage", "reached"),
    [
        (0.4, 0.95, 0.45, [0]),
        (0.39, 0.95, 0.45, []),
        (0.4, 0.94, 0.45, []),
        (0.4, 0.95, 0.42, []),
    ],
)
def test_each_bar_counts(near: float, agreement: float, coverage: float, reached: list) -> None:
    report = _report(near, coverage)
    report["judge"]["guided"]["agreement"] = agreement
    assert Point.of("pcg", "sampling", "judge", 0.2, {0: report}).reaching == reached


def test_the_interval_of_three_seeds_is_the_textbooks() -> None:
    """2, 4, 9: mean 5, standard deviation sqrt(13), t = 4.30265 at two degrees of freedom."""
    assert interval(np.array([2.0, 4.0, 9.0])) == pytest.approx(4.30265 * np.sqrt(13 / 3), rel=1e-5)
    assert np.isnan(interval(np.array([2.0])))


def test_the_curves_are_drawn(tmp_path: Path) -> None:
    """In orange, in each of four panels for fine-tuning and four for sampling, and for one of them alone."""
    draw(_points(), tmp_path / "curve.png")
    pixels = matplotlib.image.imread(tmp_path / "curve.png")
    orange = np.abs(pixels[..., :3] - np.array([0xD9, 0x48, 0x0F]) / 255).max(axis=2) < 0.02
    assert len(PANELS) == 4
    for half in np.array_split(orange, 2, axis=0):
        assert all(part.sum() > 100 for part in np.array_split(half, 4, axis=1))
    draw([p for p in _points() if p.how == "sampling"], tmp_path / "half.png")
    assert 0.4 < len(matplotlib.image.imread(tmp_path / "half.png")) / len(pixels) < 0.6
