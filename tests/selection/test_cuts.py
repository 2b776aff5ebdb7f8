"""Cuts: the smallest values of each group, whatever the chunks, and ties counted."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ssat_ray.selection.cuts import Cuts, split


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.integers(-4, 4)), min_size=1, max_size=60),
    data=st.data(),
)
def test_each_group_takes_its_smallest_values_and_the_earlier_on_ties(rows, data):
    groups = np.array([group for group, _ in rows], np.int16)
    values = np.array([value for _, value in rows], np.float32)
    sizes = np.bincount(groups, minlength=4).tolist()
    quotas = [data.draw(st.integers(0, size)) for size in sizes]
    stop = data.draw(st.integers(0, len(rows)))
    cuts = Cuts.of([values[groups == group] for group in range(4)], quotas)
    take = cuts.taker()
    mask = np.concatenate(
        [take(values[:stop], groups[:stop]), take(values[stop:], groups[stop:])]
    )  # fmt: skip
    for group, quota in enumerate(quotas):
        (members,) = np.nonzero(groups == group)
        ranked = members[np.argsort(values[members], kind="stable")]
        assert np.flatnonzero(mask & (groups == group)).tolist() == sorted(ranked[:quota])
        same = (values[members] == values[ranked[quota - 1]]).sum() if quota else 0
        assert cuts.num_equal[group] == same
    limits = [cuts.limit[group] for group in range(4) if quotas[group]]
    assert cuts.highest == max(limits, default=-np.inf)
    assert cuts.num_tied == sum(same for same in cuts.num_equal if same > 1)


def test_a_taker_starts_anew():
    cuts = Cuts.of([np.array([1.0, 1.0, 0.0])], [2])
    for _ in range(2):
        assert cuts.taker()(np.array([1.0, 1.0, 0.0]), 0).tolist() == [True, False, True]


def test_values_of_minus_infinity_are_not_taken_for_nothing():
    cuts = Cuts.of([np.array([-np.inf, 0.0])], [0])
    assert not cuts.taker()(np.array([-np.inf, 0.0]), 0).any()


def test_split_keeps_the_order_within_groups():
    found = list(split(np.arange(6), np.array([4, 1, 4, 0, 1, 4], np.int16)))
    assert [(group, values.tolist()) for group, values in found] == [
        (0, [3]),
        (1, [1, 4]),
        (4, [0, 2, 5]),
    ]
    assert list(split(np.arange(0), np.zeros(0, np.int16))) == []
    ((group, values),) = split(np.arange(3), 0)
    assert (group, values.tolist()) == (0, [0, 1, 2])
