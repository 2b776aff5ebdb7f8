"""Main effects: closed forms on grids, scipy's t tests, models without noise, settings that vary together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from ssat_ray.comparison.effects import distinct, levels, main_effects, text

RNG = np.random.default_rng(0)
GRID = np.array([(k, r) for k in range(5) for r in range(4)])


def test_on_a_grid_they_are_marginal_means_with_the_noise_of_seeds() -> None:
    table = RNG.normal(size=(20, 3))
    found = main_effects(GRID, table)
    assert found.crossed and found.degrees_of_freedom == (4 * 2, 3 * 2)
    for factor, (column, size) in enumerate(((0, 5), (1, 4))):
        effects = found.effects[factor]
        assert effects is not None and len(effects) == size
        own = np.array([table[GRID[:, column] == level].mean(0) for level in range(size)])
        rest = own - own.mean(1, keepdims=True) - own.mean(0) + own.mean()
        degrees = (size - 1) * 2
        variance = (rest**2).sum() / degrees
        for level, effect in enumerate(effects):
            mean = own[level].mean() - table.mean()
            half = stats.t.ppf(0.975, degrees) * (variance / 3 * (1 - 1 / size)) ** 0.5
            assert effect.mean == pytest.approx(mean)
            assert (effect.low, effect.high) == pytest.approx((mean - half, mean + half))


def test_two_levels_of_several_seeds_are_the_paired_t_test() -> None:
    table = RNG.normal(size=(2, 4))
    effects = main_effects(np.array([[0], [1]]), table).effects[0]
    expected = stats.ttest_rel(table[1], table[0]).confidence_interval(0.95)
    assert effects is not None
    assert 2 * effects[1].mean == pytest.approx((table[1] - table[0]).mean())
    assert (2 * effects[1].low, 2 * effects[1].high) == pytest.approx((expected.low, expected.high))


def test_two_levels_of_one_seed_are_the_unpaired_t_test() -> None:
    values, index = RNG.normal(size=10), np.array([0] * 5 + [1] * 5)
    found = main_effects(index[:, None], values[:, None])
    assert not found.crossed and found.degrees_of_freedom == (8,)
    effects = found.effects[0]
    expected = stats.ttest_ind(values[5:], values[:5]).confidence_interval(0.95)
    assert effects is not None
    assert (2 * effects[1].low, 2 * effects[1].high) == pytest.approx((expected.low, expected.high))


def test_levels_of_unequal_size_are_those_of_one_way_analysis() -> None:
    index = np.array([0, 0, 1, 1, 1, 2, 2, 2, 2])
    values = RNG.normal(size=9)
    groups = [values[index == level] for level in range(3)]
    within = sum(((g - g.mean()) ** 2).sum() for g in groups) / 6
    between = sum(len(g) * (g.mean() - values.mean()) ** 2 for g in groups) / 2
    assert stats.f_oneway(*groups).statistic == pytest.approx(between / within)
    effects = main_effects(index[:, None], values[:, None]).effects[0]
    assert effects is not None
    for group, effect in zip(groups, effects, strict=True):
        half = stats.t.ppf(0.975, 6) * (within * (1 / len(group) - 1 / 9)) ** 0.5
        assert effect.mean == pytest.approx(group.mean() - values.mean())
        assert effect.high == pytest.approx(effect.mean + half)


@given(
    hnp.arrays(np.int64, (24, 2), elements=st.integers(0, 2)),
    hnp.arrays(np.float64, (2, 3), elements=st.floats(-9, 9)),
)
def test_additive_accuracies_give_their_effects_in_any_design(
    factors: np.ndarray, truth: np.ndarray
) -> None:
    """Without noise, and however unevenly the values occur, the other setting is held equal."""
    factors[:9] = [(i, j) for i in range(3) for j in range(3)]  # all can be told apart
    table = (truth[0][factors[:, 0]] + truth[1][factors[:, 1]])[:, None]
    found = main_effects(factors, table)
    for factor in range(2):
        average = truth[factor][factors[:, factor]].mean()
        effects = found.effects[factor]
        assert effects is not None
        for level, effect in enumerate(effects):
            assert effect.mean == pytest.approx(truth[factor][level] - average, abs=1e-8)


def test_settings_that_vary_together_cannot_be_told_apart() -> None:
    factors = np.array([(0, 0, 0), (1, 1, 0), (0, 0, 1), (1, 1, 1), (0, 0, 1)])
    found = main_effects(factors, RNG.normal(size=(5, 1)))
    assert found.effects[0] is None and found.effects[1] is None
    assert found.effects[2] is not None


def test_too_few_configurations_have_effects_without_bounds() -> None:
    found = main_effects(np.array([[0], [1], [2]]), RNG.normal(size=(3, 1)))
    assert found.degrees_of_freedom == (0,) and found.effects[0] is not None
    assert all(effect.low is None for effect in found.effects[0])


@pytest.mark.parametrize("shared", [0.0, 0.6, 2.0])
def test_intervals_of_a_grid_of_two_seeds_cover(shared: float) -> None:
    """Also where configurations share a clustering of their seed, whose luck is `shared` points."""
    rng, hits, trials = np.random.default_rng(2), 0, 1000
    truth = np.array([-0.5, 0.0, 0.5, 0.25, -0.25])[GRID[:, 0]]
    for _ in range(trials):
        table = truth[:, None] + rng.normal(0, 1, 2) + rng.normal(0, 0.8, (20, 2))
        table += rng.normal(0, shared, (5, 2))[GRID[:, 0]]
        effects = main_effects(GRID, table).effects[0]
        assert effects is not None and effects[0].low is not None and effects[0].high is not None
        hits += effects[0].low <= -0.5 <= effects[0].high
    assert hits / trials == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize(
    ("values", "names", "index"),
    [
        ([20, 5, 10.0, 5], ("5", "10", "20"), [2, 0, 1, 0]),
        ([1, 1.0], ("1",), [0, 0]),
        (["b", "a", None], ("a", "b", "null"), [1, 0, 2]),
        ([True, 1, False], ("1", "false", "true"), [2, 0, 1]),
        ([[32, 64], [32]], ("[32, 64]", "[32]"), [0, 1]),
        ([0.1 + 0.2, 0.05], ("0.05", "0.3"), [1, 0]),
    ],
)
def test_values_become_levels(values: list[Any], names: tuple[str, ...], index: list[int]) -> None:
    found = levels(values)
    assert found.names == names
    assert found.index.tolist() == index


def test_many_numbers_are_cut_into_thirds() -> None:
    values = RNG.permutation(np.arange(1, 13)).tolist()
    found = levels(values)
    assert found.names == ("1 to 4", "5 to 8", "9 to 12")
    assert np.bincount(found.index).tolist() == [4, 4, 4]
    assert [(value - 1) // 4 for value in values] == found.index.tolist()
    assert levels([f"name {i}" for i in range(12)]).index.max() == 11
    assert distinct([3, 1, 3.0]) == [1, 3.0] and text(1e-5) == "1e-05"
