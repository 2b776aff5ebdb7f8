"""Points of one actor: the statistics of all of them at once, in memory that does not grow with the parts."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from ssat_ray.selection import em, lloyd
from ssat_ray.selection.gmm import fit_gmm
from ssat_ray.selection.points import Frame
from ssat_ray.stages import held_points
from ssat_ray.stages.base import Task
from ssat_ray.stages.held import hold
from ssat_ray.stages.held_points import HeldPoints, Holding
from ssat_ray.store import Job

ROWS, WIDTH, K = 1200, 6, 4
H = np.random.default_rng(0).normal(size=(ROWS, WIDTH)).astype(np.float16).astype(np.float32)
FRAME = Frame.fit(H, bits=24)
CUTS = {"one": [], "two": [700], "many": [*range(30, ROWS, 30)]}


def held(folder: Path, where: str, cuts: list[int], frame: Frame = FRAME) -> HeldPoints:
    ids = 3 * np.arange(ROWS)
    for part, rows in enumerate(np.split(np.arange(ROWS), cuts)):
        hold(folder, part, H[rows].astype(np.float16), ids[rows], np.zeros(len(rows)))
    task = Task(Job("cluster", 1, {}, {}), folder, {}, folder)
    return HeldPoints(Holding(task, list(range(len(cuts) + 1)), frame, where))  # type: ignore[arg-type]


@pytest.mark.parametrize("where", ["points", "embeddings", "files"])
@pytest.mark.parametrize("cuts", CUTS)
def test_statistics_are_those_of_all_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, cuts: str
) -> None:
    monkeypatch.setattr(held_points, "_GROUP_ROWS", 500)
    found, x = held(tmp_path, where, CUTS[cuts]), FRAME.points(H)
    for centroids in (x[:K].numpy(), x[9 : 9 + K].numpy()):
        have, want = found.lloyd(centroids), lloyd.lloyd_statistics(x, centroids, FRAME.grid)
        assert np.array_equal(have.counts, want.counts)
        assert np.array_equal(have.sums.value(), want.sums.value())
        assert have.inertia.value() == want.inertia.value()
    rows = found.farthest(x[:K].numpy(), 9)
    want_rows = lloyd.farthest(x, 3 * np.arange(ROWS), x[:K].numpy(), 9)
    assert [row[:2] for row in rows] == [row[:2] for row in want_rows]
    assert all(np.array_equal(a[2], b[2]) for a, b in zip(rows, want_rows, strict=True))


@pytest.mark.parametrize("where", ["points", "embeddings", "files"])
@pytest.mark.parametrize("cuts", CUTS)
def test_a_mixtures_statistics_are_those_of_all_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, cuts: str
) -> None:
    monkeypatch.setattr(held_points, "_GROUP_ROWS", 500)
    mixture = fit_gmm(H, K, covariance="full")
    frame = em.mixture_frame(H, mixture)
    start = em.into_frame(mixture, frame)
    have = held(tmp_path, where, CUTS[cuts], frame).em(start)
    want = em.em_statistics(frame.points(H), start, frame.grid)
    assert have.rows == want.rows == ROWS
    for name in ("mass", "first", "second", "log_likelihood", "rest"):
        assert np.array_equal(getattr(have, name).value(), getattr(want, name).value())


def sums_bytes(folder: Path, cuts: list[int], k: int) -> int:
    """NumPy memory that stays after an iteration, besides the points."""
    found = held(folder, "points", cuts)
    centroids = np.random.default_rng(1).normal(size=(k, WIDTH)).astype(np.float32)
    tracemalloc.start()
    found.lloyd(centroids)
    found.lloyd(centroids)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return kept


def test_the_memory_of_the_sums_does_not_grow_with_the_parts(tmp_path: Path) -> None:
    k = 2000
    one, many = (sums_bytes(tmp_path / name, CUTS[name], k) for name in ("one", "many"))
    assert 16 * k * WIDTH < one
    assert many < 1.1 * one


@pytest.mark.parametrize("where", ["points", "embeddings", "files"])
def test_many_small_parts_make_no_more_groups(tmp_path: Path, where: str) -> None:
    """Each group costs sums of k x p numbers (of a full mixture k x p x p)."""
    found = held(tmp_path, where, CUTS["many"])
    assert [len(x) for x in found._groups()] == [ROWS]
