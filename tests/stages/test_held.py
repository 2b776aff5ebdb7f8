"""Kept embeddings: the sample is the rows of lowest order, however they are cut into parts."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssat_ray.selection.scores import random_score
from ssat_ray.stages.held import Held, hold, sample_cut

ROWS = 1_000
H = np.random.default_rng(0).normal(size=(ROWS, 6)).astype(np.float32)
IDS = np.arange(ROWS) * 3
ORDER = random_score(IDS, 7)


def _hold(folder: Path, sizes: list[int], dtype: str = "float32") -> Held:
    start = 0
    for part, size in enumerate(sizes):
        rows = slice(start, start + size)
        hold(folder, part, H[rows].astype(dtype), IDS[rows], ORDER[rows])
        start += size
    assert start == ROWS
    return Held(folder, list(range(len(sizes))))


@pytest.mark.parametrize("sizes", [[1000], [1, 999], [300, 300, 400], [100] * 10])
def test_the_sample_is_the_lowest_orders_by_id(tmp_path: Path, sizes: list[int]) -> None:
    held = _hold(tmp_path, sizes)
    lowest = np.sort(np.argsort(ORDER)[:137])
    assert np.array_equal(held.sample(137), H[lowest])
    assert np.array_equal(held.ids(), IDS)
    assert held.num_bytes == H.nbytes


@pytest.mark.parametrize("rows", [ROWS, ROWS + 1])
def test_a_sample_of_all_rows_is_all_rows(tmp_path: Path, rows: int) -> None:
    assert np.array_equal(_hold(tmp_path, [400, 600]).sample(rows), H)


@given(parts=st.lists(st.lists(st.integers(0, 9), max_size=8), max_size=8), rows=st.integers(1, 12))
def test_the_cut_is_what_all_orders_together_say(parts: list[list[int]], rows: int) -> None:
    orders = [np.array(part, np.float64) for part in parts]
    together = np.concatenate([np.empty(0), *orders])
    expected = np.inf if len(together) <= rows else np.sort(together)[rows]
    assert sample_cut(orders, rows) == expected


def test_the_memory_of_the_cut_does_not_grow_with_the_embeddings() -> None:
    rng = np.random.default_rng(0)
    tracemalloc.start()
    sample_cut((rng.random(1000) for _ in range(500)), 1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * 1000


def test_float16_halves_the_embeddings_and_not_the_points(tmp_path: Path) -> None:
    held = _hold(tmp_path, [400, 600], "float16")
    assert held.num_bytes == H.nbytes / 2
    assert held.point_bytes(6) == H.nbytes and held.point_bytes(2) == H.nbytes / 3
    assert np.array_equal(held.sample(ROWS), H.astype(np.float16).astype(np.float32))
    size = sum(path.stat().st_size for path in tmp_path.rglob("h-*.npy"))
    assert size == pytest.approx(H.nbytes / 2, rel=0.05)


def test_parts_of_one_actor(tmp_path: Path) -> None:
    _hold(tmp_path, [400, 600])
    assert np.array_equal(Held(tmp_path, [1]).ids(), IDS[400:])
