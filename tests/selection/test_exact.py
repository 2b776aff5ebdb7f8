"""Exact sums, and k-means and EM statistics that no split or order of the rows changes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssat_ray.selection.exact import ExactSum, Grid, add_product


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60), st.randoms())
@settings(max_examples=50, deadline=None)
def test_totals_are_exact_in_any_order_and_split(numbers: list[float], random: object) -> None:
    grid = Grid.for_values(1e6, 40)
    terms = grid.round_(torch.tensor(numbers, dtype=torch.float64)).tolist()
    expected = math.fsum(terms)  # correctly rounded; the terms need fewer than 53 bits together
    shuffled = list(terms)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    cut = len(terms) // 3
    left, right = ExactSum((), grid), ExactSum((), grid)
    for target, part in ((left, shuffled[:cut]), (right, shuffled[cut:])):
        for term in part:
            target.add(np.float64(term))
    left.merge(right)
    assert float(left.value()) == expected


def test_totals_go_beyond_what_float64_adds_exactly() -> None:
    grid = Grid(0, 52)
    total = ExactSum((), grid)
    for _ in range(1000):
        total.add(np.float64(2.0**52 + 1))
    assert int(total._high) * 2**26 + int(total._low) == 1000 * (2**52 + 1)


def test_rounding_is_to_the_nearest_multiple() -> None:
    grid = Grid.for_values(3.0, 8)
    assert grid.unit == 2.0**-6
    x = torch.linspace(-3, 3, 1001)
    rounded = grid.round_(x.clone())
    assert rounded.dtype == torch.float32
    assert ((rounded / grid.unit) == (rounded / grid.unit).round()).all()
    assert (rounded - x).abs().max() <= grid.unit / 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_rounding_is_half_to_even(dtype: torch.dtype, seed: int) -> None:
    grid = Grid.for_values(3.0, 18)
    x = torch.from_numpy(np.random.default_rng(seed).uniform(-3, 3, 1000)).to(dtype)
    x[:3] = torch.tensor([0.5, 1.5, -2.5]) * grid.unit  # ties
    expected = torch.round(x / grid.unit) * grid.unit
    assert torch.equal(grid.round_(x), expected)


def test_products_are_added_exactly() -> None:
    rng = np.random.default_rng(0)
    a = torch.from_numpy(rng.integers(-(2**19), 2**19, (3, 1300)).astype(np.float64))
    b = torch.from_numpy(rng.integers(-(2**20), 2**20, (1300, 5)).astype(np.float64))
    total = np.ones((3, 5))
    add_product(total, a, b)
    expected = a.numpy().astype(np.int64) @ b.numpy().astype(np.int64) + 1
    np.testing.assert_array_equal(total.astype(np.int64), expected)


def test_a_slice_is_a_copy() -> None:
    total = ExactSum((3,), Grid(0, 20))
    total.add(np.array([1.0, 2.0, 3.0]))
    part = total[1:]
    total.add(np.array([1.0, 1.0, 1.0]))
    assert part.shape == (2,)
    np.testing.assert_array_equal(part.value(), [2.0, 3.0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, 2.0**53])
def test_a_sum_that_may_have_been_rounded_is_refused(bad: float) -> None:
    with pytest.raises(OverflowError):
        ExactSum((), Grid(0, 52)).add(np.float64(bad))


def test_only_like_totals_merge() -> None:
    with pytest.raises(ValueError, match="one grid and shape"):
        ExactSum((2,), Grid(0, 20)).merge(ExactSum((2,), Grid(1, 20)))


def test_a_grid_too_fine_for_exact_sums_is_refused() -> None:
    assert Grid(0, 40).block_rows == 2**13
    with pytest.raises(ValueError, match="cannot be added exactly"):
        _ = Grid(0, 53).block_rows
