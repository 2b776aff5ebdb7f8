"""Regrouping: the same rows in the same order, in arrays of one size."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ssat_ray.selection.regroup import regroup


@settings(deadline=None)
@given(sizes=st.lists(st.integers(0, 9), max_size=12), rows=st.integers(1, 12))
def test_rows_keep_their_order_and_groups_their_size(sizes: list[int], rows: int) -> None:
    whole = np.arange(2 * sum(sizes)).reshape(-1, 2)
    found = list(regroup(np.split(whole, np.cumsum(sizes)[:-1]) if sizes else [], rows))
    assert [len(group) for group in found[:-1]] == [rows] * (len(found) - 1)
    assert not found or 1 <= len(found[-1]) <= rows
    assert np.array_equal(np.concatenate([whole[:0], *found]), whole)


def test_rows_of_one_array_are_not_copied() -> None:
    array = np.zeros(10)
    assert all(np.shares_memory(group, array) for group in regroup([array], 4))
