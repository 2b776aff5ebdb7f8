"""Intervals, noise, seeds to settle and fronts against scipy, explicit least squares, brute force and simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from ssat_ray.adversarial.intervals import bootstrap_interval
from ssat_ray.comparison.statistics import (
    Interval,
    Noise,
    block_noise,
    difference_interval,
    image_variance,
    noise_interval,
    pareto_front,
    seed_interval,
    seeds_needed,
    t_quantile,
)

RNG = np.random.default_rng(0)
VALUES = st.floats(-1000, 1000, allow_nan=False)


def tables(least: int = 2) -> st.SearchStrategy[np.ndarray]:
    shape = st.tuples(st.integers(least, 6), st.integers(2, 5))
    return shape.flatmap(lambda s: hnp.arrays(np.float64, s, elements=VALUES))


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
@pytest.mark.parametrize("degrees", [1, 2, 19])
def test_quantiles_are_those_of_student_and_gauss(level: float, degrees: int) -> None:
    assert t_quantile(level, degrees) == pytest.approx(stats.t.ppf(0.5 + level / 2, degrees))


@pytest.mark.parametrize("num_seeds", [2, 3, 5])
def test_an_interval_over_seeds_is_the_one_sample_t_interval(num_seeds: int) -> None:
    values = RNG.normal(80, 2, num_seeds)
    found = seed_interval(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.mean == pytest.approx(values.mean())


@pytest.mark.parametrize("num_seeds", [2, 3, 5])
def test_a_difference_alone_is_the_paired_t_interval(num_seeds: int) -> None:
    a, b = RNG.normal(80, 2, (2, num_seeds))
    found = difference_interval(a, b, noise=block_noise([a, b]))
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (found.mean, found.low, found.high) == pytest.approx(
        ((a - b).mean(), expected.low, expected.high)
    )


def test_one_seed_has_no_interval_over_seeds() -> None:
    assert seed_interval([80.0]) == Interval(80.0, None, None)
    assert difference_interval([80.0], [79.0], noise=None) == Interval(1.0, None, None)
    assert Interval(5.0, None, None).settled == 0
    assert block_noise([[80.0], [79.0]]) is None and block_noise([[80.0, 79.0]]) is None


def test_noise_is_the_residual_of_least_squares_with_outcomes_and_seeds() -> None:
    table = RNG.normal(size=(5, 3))
    rows, columns = np.indices(table.shape).reshape(2, -1)
    design = np.column_stack(
        [np.ones(15), *(rows == i for i in range(1, 5)), *(columns == j for j in range(1, 3))]
    )
    rest = table.ravel() - design @ np.linalg.lstsq(design, table.ravel())[0]
    noise = block_noise(table)
    assert noise is not None
    assert noise.degrees_of_freedom == 15 - np.linalg.matrix_rank(design) == 8
    assert noise.variance == pytest.approx(rest @ rest / 8)


@pytest.mark.parametrize("missing", [[(0, 1)], [(0, 0), (1, 1), (4, 2)], [(2, 0), (2, 1)]])
def test_noise_of_outcomes_that_lack_seeds_is_that_of_least_squares(
    missing: list[tuple[int, int]],
) -> None:
    """Against statsmodels' way: drop the empty cells, fit outcome and seed with one level of each left out."""
    table = RNG.normal(size=(5, 3))
    for cell in missing:
        table[cell] = np.nan
    known = ~np.isnan(table.ravel())
    rows, columns = np.indices(table.shape).reshape(2, -1)
    design = np.column_stack(
        [np.ones(15), *(rows == i for i in range(1, 5)), *(columns == j for j in range(1, 3))]
    )[known]
    values = table.ravel()[known]
    rest = values - design @ np.linalg.lstsq(design, values)[0]
    degrees = known.sum() - 7
    noise = block_noise(table)
    assert noise is not None and noise.degrees_of_freedom == degrees
    assert noise.variance == pytest.approx(rest @ rest / degrees)


def test_an_outcome_of_one_seed_says_nothing_about_noise() -> None:
    table = RNG.normal(size=(4, 3))
    lonely = np.array([[80.0, np.nan, np.nan]])
    with_it, without = block_noise(np.vstack([table, lonely])), block_noise(table)
    assert with_it is not None and without is not None
    assert with_it.variance == pytest.approx(without.variance)
    assert with_it.degrees_of_freedom == without.degrees_of_freedom == 6
    assert (with_it.num_outcomes, with_it.num_seeds) == (4, 3)
    apart = np.full((2, 4), np.nan)
    apart[0, :2], apart[1, 2:] = (1.0, 2.0), (3.0, 5.0)
    assert block_noise(apart) is None


@given(tables(), st.data())
def test_what_outcomes_and_seeds_add_is_no_noise(table: np.ndarray, data: st.DataObject) -> None:
    by_row = data.draw(hnp.arrays(np.float64, len(table), elements=VALUES))
    by_column = data.draw(hnp.arrays(np.float64, table.shape[1], elements=VALUES))
    first = block_noise(table)
    second = block_noise(table + by_row[:, None] + by_column)
    assert first is not None and second is not None
    assert second.variance == pytest.approx(first.variance, rel=1e-6, abs=1e-6)


@given(tables())
def test_a_difference_turns_round_with_its_sides(table: np.ndarray) -> None:
    noise = block_noise(table)
    there, back = (difference_interval(*pair, noise=noise) for pair in (table[:2], table[1::-1]))
    assert there.low is not None and back.high is not None
    assert (there.mean, there.low) == pytest.approx((-back.mean, -back.high), abs=1e-9)
    assert there.settled == -back.settled


def test_pooled_noise_narrows_an_interval_of_two_seeds_and_covers() -> None:
    """12 outcomes of 2 seeds: t with 11 degrees of freedom instead of 1, both at their level."""
    rng, hits, alone_hits, widths = np.random.default_rng(1), 0, 0, []
    truth = np.linspace(0, 3, 12)
    for _ in range(2000):
        table = truth[:, None] + rng.normal(0, 1, 2) + rng.normal(0, 0.7, (12, 2))
        found = difference_interval(table[0], table[11], noise=block_noise(table))
        alone = difference_interval(table[0], table[11], noise=block_noise(table[[0, 11]]))
        assert found.low is not None and found.high is not None
        assert alone.low is not None and alone.high is not None
        hits += found.low <= -3 <= found.high
        alone_hits += alone.low <= -3 <= alone.high
        widths.append((found.high - found.low) / (alone.high - alone.low))
    assert hits / 2000 == pytest.approx(0.95, abs=0.015)
    assert alone_hits / 2000 == pytest.approx(0.95, abs=0.015)
    assert np.median(widths) < 0.5


def test_an_interval_with_noise_is_that_of_a_mean_of_known_degrees() -> None:
    found = noise_interval([80.0, 82.0], Noise(4.0, 10, 11, 2))
    half = stats.t.ppf(0.975, 10) * (4.0 / 2) ** 0.5
    assert (found.mean, found.low, found.high) == pytest.approx((81.0, 81 - half, 81 + half))


def test_image_variance_is_the_component_of_a_two_way_table() -> None:
    """Against sums of squares by plain loops."""
    a, b = RNG.random((2, 3, 40)) < np.linspace(0.2, 0.9, 40)
    x = 100.0 * (a.astype(float) - b)
    grand = x.mean()
    images = sum(3 * (x[:, n].mean() - grand) ** 2 for n in range(40)) / 39
    rest = sum(
        (x[s, n] - x[s].mean() - x[:, n].mean() + grand) ** 2 for s in range(3) for n in range(40)
    ) / (2 * 39)
    assert image_variance(a, b) == pytest.approx(max(0.0, images - rest) / (3 * 40))


def test_with_one_seed_the_images_interval_is_that_of_the_bootstrap() -> None:
    flags = RNG.random((1, 2000)) < 0.7
    variance = image_variance(flags, np.zeros_like(flags))
    found = difference_interval([100 * flags.mean()], [0.0], noise=None, image_variance=variance)
    _, low, high = (100 * v for v in bootstrap_interval(flags, num_resamples=20_000))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.1)


@pytest.mark.parametrize("shapes", [((2, 5), (2, 6)), ((5,), (5,)), ((2, 1), (2, 1))])
def test_flags_that_do_not_pair_are_refused(shapes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ValueError, match="shape"):
        image_variance(*(np.ones(shape, bool) for shape in shapes))


@pytest.mark.parametrize("num_seeds", [2, 3, 6])
@pytest.mark.parametrize(("by_seed", "by_image"), [(0.0, 2.0), (0.3, 2.0), (1.0, 1.0), (2.0, 0.0)])
def test_seeds_and_images_together_cover_at_least_the_level(
    num_seeds: int, by_seed: float, by_image: float
) -> None:
    """Components of variance of a mean difference, points²; images and seeds are drawn anew each time."""
    rng, hits, images = np.random.default_rng(num_seeds), 0, 200
    trials = 1500
    for _ in range(trials):
        seed = rng.normal(0, by_seed**0.5, (num_seeds, 1))
        image = rng.normal(0, (by_image * images) ** 0.5, images)
        table = seed + image + rng.normal(0, (0.5 * images) ** 0.5, (num_seeds, images))
        rest = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
        together = (rest**2).sum() / ((num_seeds - 1) * (images - 1))
        between = num_seeds * table.mean(0).var(ddof=1)
        variance = max(0.0, between - together) / (num_seeds * images)
        pair = table.mean(1), np.zeros(num_seeds)
        found = difference_interval(*pair, noise=block_noise(pair), image_variance=variance)
        assert found.low is not None and found.high is not None
        hits += found.low <= 0 <= found.high
    assert hits / trials > 0.95 - 3 * (0.95 * 0.05 / trials) ** 0.5


@given(
    st.floats(-5, 5, allow_nan=False),
    st.floats(0, 9),
    st.integers(2, 30),
    st.floats(0, 0.5),
)
def test_the_seeds_needed_are_the_least_that_settle(
    mean: float, variance: float, num_outcomes: int, images: float
) -> None:
    """Against a search one by one through intervals that have that mean."""
    found = seeds_needed(mean, Noise(variance, 1, num_outcomes, 2), image_variance=images)
    for num_seeds in range(2, 60):
        degrees = (num_outcomes - 1) * (num_seeds - 1)
        noise = Noise(variance, degrees, num_outcomes, num_seeds)
        interval = difference_interval(
            np.full(num_seeds, mean), np.zeros(num_seeds), noise=noise, image_variance=images
        )
        edge = min(abs(interval.low or 0.0), abs(interval.high or 0.0)) < 1e-9
        if edge:
            return
        if interval.settled:
            assert found == num_seeds
            return
    assert found is None or found >= 60


def test_seeds_needed_of_what_no_seed_settles() -> None:
    noise = Noise(1.0, 1, 2, 2)
    assert seeds_needed(0.0, noise) is None
    assert seeds_needed(1.0, noise, image_variance=1.0) is None
    assert seeds_needed(1e-4, noise) is None
    least = next(s for s in itertools.count(2) if stats.t.ppf(0.975, s - 1) * (1 / s) ** 0.5 < 1)
    assert seeds_needed(1.0, Noise(0.5, 1, 2, 2)) == least
    assert seeds_needed(1.0, Noise(0.5, 1, 2, 2), used=least + 3) == least + 4


GRID = st.integers(1, 8).flatmap(
    lambda n: hnp.arrays(np.float64, (n, 3), elements=st.integers(0, 3).map(float))
)


@given(GRID)
def test_the_front_is_what_no_other_point_beats(points: np.ndarray) -> None:
    costs, gain = points[:, :2], points[:, 2]
    found = pareto_front(costs, gain)
    for i, one in enumerate(points):
        beaten = any(
            all(other[:2] <= one[:2])
            and other[2] >= one[2]
            and (any(other[:2] < one[:2]) or other[2] > one[2])
            for other in points
        )
        assert found[i] == (not beaten)


@given(GRID)
def test_every_other_point_is_beaten_by_one_on_the_front(points: np.ndarray) -> None:
    costs, gain = points[:, :2], points[:, 2]
    front = pareto_front(costs, gain)
    assert front.any()
    for one in points[~front]:
        assert any(all(o[:2] <= one[:2]) and o[2] >= one[2] for o in points[front])
    np.testing.assert_array_equal(pareto_front(np.exp(costs), 3 * gain - 7), front)


def test_one_cost_may_be_a_plain_list() -> None:
    assert pareto_front([1.0, 2.0, 3.0, 3.0], [5.0, 5.0, 6.0, 6.0]).tolist() == [
        True,
        False,
        True,
        True,
    ]


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="level is 95"):
        seed_interval([1.0, 2.0], level=95)
    with pytest.raises(ValueError, match="pairs need equal shapes"):
        difference_interval([1.0, 2.0], [1.0], noise=None)
    with pytest.raises(ValueError, match="must be \\(outcomes, seeds\\)"):
        block_noise([1.0, 2.0])
