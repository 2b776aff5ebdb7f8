"""Divergences of counts against SciPy and values worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from ssat_ray.selection.divergence import (
    expected_psi,
    group_rare,
    homogeneity_p,
    kolmogorov_sf,
    ks_p,
    ks_statistic,
    psi,
)

COUNTS = st.integers(2, 30).flatmap(
    lambda size: st.tuples(
        *[st.lists(st.integers(1, 10_000), min_size=size, max_size=size) for _ in range(2)]
    )
)


def test_psi_by_hand() -> None:
    # Shares 1/2, 1/2 against 1/4, 3/4: (-1/4) ln(1/2) + (1/4) ln(3/2) = ln(3) / 4.
    assert psi([50, 50], [10, 30]) == pytest.approx(math.log(3) / 4, rel=1e-12)
    # The empty bin counts half a row of 40: (1/2 - 1/80) ln(40) + (1/2) ln(2).
    expected = (0.5 - 1 / 80) * math.log(40) + 0.5 * math.log(2)
    assert psi([50, 50], [0, 40]) == pytest.approx(expected, rel=1e-12)
    assert psi([50, 0, 50], [20, 0, 20]) == 0


@given(COUNTS)
def test_psi_is_symmetric_and_not_negative(counts) -> None:
    assert psi(*counts) == pytest.approx(psi(*counts[::-1]), abs=1e-12)
    assert psi(*counts) >= 0


@pytest.mark.parametrize(("num_bins", "n"), [(10, 500), (50, 5000)])
def test_expected_psi_is_the_mean_over_samples(num_bins: int, n: int) -> None:
    rng = np.random.default_rng(0)
    shares = np.full(num_bins, 1 / num_bins)
    reference, sample = rng.multinomial(20_000, shares, 500), rng.multinomial(n, shares, 500)
    found = np.mean([psi(a, b) for a, b in zip(reference, sample, strict=True)])
    assert found == pytest.approx(expected_psi(reference[0], sample[0]), rel=0.1)


@given(COUNTS)
def test_homogeneity_p_agrees_with_scipy(counts) -> None:
    expected = stats.chi2_contingency(np.array(counts), correction=False).pvalue
    assert homogeneity_p(*counts) == pytest.approx(expected, rel=1e-8, abs=1e-300)


def test_homogeneity_of_one_bin_tells_nothing() -> None:
    assert homogeneity_p([10, 0], [20, 0]) == 1


@given(st.floats(0, 3))
def test_kolmogorov_sf_agrees_with_scipy(x: float) -> None:
    assert kolmogorov_sf(x) == pytest.approx(special.kolmogorov(x), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("n", "m"), [(200, 100_000), (3000, 4000), (10**6, 10**5)])
@pytest.mark.parametrize("scaled", [0.6, 1.0, 1.6, 2.2])
def test_ks_p_agrees_with_the_finite_distribution(n: int, m: int, scaled: float) -> None:
    effective = n * m / (n + m)
    statistic = scaled / math.sqrt(effective)
    expected = stats.kstwo.sf(statistic, round(effective))
    assert ks_p(statistic, n, m) == pytest.approx(expected, rel=0.03)


def test_ks_statistic_of_sorted_values_agrees_with_scipy() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=300), rng.normal(0.3, 1.2, size=200)
    edges = np.concatenate([[-np.inf], np.sort(np.concatenate([a, b]))])
    counts = [np.histogram(x, np.append(edges[:-1], np.nextafter(edges[-1], 9)))[0] for x in (a, b)]
    assert ks_statistic(*counts) == pytest.approx(stats.ks_2samp(a, b).statistic, abs=1 / 200)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=60), st.integers(1, 5000))
def test_rare_bins_are_grouped_among_themselves(reference, num_rows) -> None:
    if not sum(reference):
        reference[0] = 1
    group = group_rare(np.array(reference), num_rows)
    expected = np.array(reference) * (num_rows / sum(reference))
    total = np.bincount(group, weights=expected)
    assert total.sum() == pytest.approx(num_rows)
    assert np.array_equal(np.unique(group), np.arange(len(total)))
    for members in (np.flatnonzero(group == g) for g in range(len(total))):
        assert len(members) == 1 or (expected[members] < 5).all()
    assert (total < 5).sum() <= 1


@pytest.mark.parametrize("counts", [([1, 2], [0, 0]), ([0, 0], [1, 2]), ([1, 2], [1, 2, 3])])
def test_counts_that_cannot_be_compared_are_refused(counts) -> None:
    with pytest.raises(ValueError, match=r"without rows|must be \(B,\)"):
        psi(*counts)
