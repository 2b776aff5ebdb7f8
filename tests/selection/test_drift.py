"""Summaries by streaming, and drift against SciPy and NumPy on the rows themselves."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ssat_ray.selection.divergence import psi
from ssat_ray.selection.drift import NUM_QUANTILES, Reference, ShardSummary, compare

K = 6


def _columns(num_rows: int, seed: int = 0, shift: float = 0.0, ties: bool = False) -> dict:
    rng = np.random.default_rng(seed)
    score = rng.gamma(3.0, 1.0 + shift, num_rows)
    return {
        "d1": rng.gamma(8.0, 1.0, num_rows).astype(np.float32),
        "cluster": rng.choice(K, num_rows, p=[0.3, 0.25, 0.2, 0.15, 0.07, 0.03]).astype(np.int32),
        "score": np.floor(score) if ties else score.astype(np.float32),
    }


def _summary(reference: Reference, columns: dict) -> ShardSummary:
    summary = reference.summary()
    summary.add(columns)
    return summary


def test_means_and_shares_are_those_of_the_rows() -> None:
    columns, new = _columns(20_000), _columns(3000, 1)
    reference = Reference.from_rows(columns, K)
    drift = compare(reference, _summary(reference, new))
    squared = [c["d1"].astype(np.float64) ** 2 for c in (columns, new)]
    assert drift.num_rows == 3000
    assert drift.reference_inertia == pytest.approx(squared[0].mean(), rel=1e-12)
    assert drift.inertia == pytest.approx(squared[1].mean(), rel=1e-12)
    assert drift.inertia_ratio == pytest.approx(squared[1].mean() / squared[0].mean(), rel=1e-12)
    variances = [s.var(ddof=1) for s in squared]
    z = (squared[1].mean() - squared[0].mean()) / np.sqrt(
        variances[0] / 20_000 + max(variances) / 3000
    )
    assert drift.inertia_p == pytest.approx(2 * stats.norm.sf(abs(z)), rel=1e-9)
    counts = [np.bincount(c["cluster"], minlength=K) for c in (columns, new)]
    assert drift.cluster_psi + drift.cluster_psi_expected == pytest.approx(psi(*counts))
    assert drift.cluster_psi_expected == pytest.approx(5 * (1 / 20_000 + 1 / 3000))
    moved = counts[1] / 3000 - counts[0] / 20_000
    assert drift.moved == np.abs(moved).argmax()
    assert drift.moved_to - drift.moved_from == pytest.approx(moved[drift.moved])


def test_score_psi_is_over_the_deciles_of_the_reference() -> None:
    columns, new = _columns(20_000), _columns(3000, 1, shift=0.4)
    reference = Reference.from_rows(columns, K)
    cuts = np.sort(columns["score"])[1999:18_000:2000]
    counts = [
        np.bincount(np.searchsorted(cuts, c["score"], "left"), minlength=10) for c in (columns, new)
    ]
    drift = compare(reference, _summary(reference, new))
    assert counts[0].tolist() == [2000] * 10
    assert drift.score_psi + drift.score_psi_expected == pytest.approx(psi(*counts))


@settings(deadline=None, max_examples=30)
@given(
    num_rows=st.integers(1, 4000),
    num_new=st.integers(1, 2000),
    shift=st.floats(0, 2),
    ties=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_ks_agrees_with_scipy(num_rows, num_new, shift, ties, seed) -> None:
    columns, new = _columns(num_rows, seed, 0, ties), _columns(num_new, seed + 1, shift, ties)
    reference = Reference.from_rows(columns, K)
    found = compare(reference, _summary(reference, new)).ks
    with np.errstate(divide="ignore"):  # SciPy's p-value, unused here, for a handful of rows
        exact = stats.ks_2samp(columns["score"], new["score"], method="asymp").statistic
    # Exact where every distinct score is stored, else to the share of rows between two quantiles.
    is_stored = len(np.unique(columns["score"])) <= len(reference.rows.edges)
    assert found == pytest.approx(exact, abs=1e-12 if is_stored else 1.001 / (NUM_QUANTILES - 1))


@settings(deadline=None, max_examples=30)
@given(cuts=st.lists(st.integers(0, 2000), max_size=5), ties=st.booleans())
def test_any_cut_of_the_rows_gives_the_same_summary(cuts, ties) -> None:
    columns = _columns(2000, 3, ties=ties)
    reference = Reference.from_rows(_columns(5000, ties=ties), K)
    whole, merged = _summary(reference, columns), reference.summary()
    bounds = [0, *sorted(cuts), 2000]
    for start, stop in itertools.pairwise(bounds):
        part = {name: column[start:stop] for name, column in columns.items()}
        merged.merge(_summary(reference, part))
    assert merged.num_rows == whole.num_rows == 2000
    assert merged.mean == pytest.approx(whole.mean, rel=1e-12)
    assert merged.variance == pytest.approx(whole.variance, rel=1e-9)
    np.testing.assert_array_equal(merged.cluster_counts, whole.cluster_counts)
    np.testing.assert_array_equal(merged.score_counts, whole.score_counts)


def test_a_reference_goes_through_json_unchanged() -> None:
    reference = Reference.from_rows(_columns(5000), K)
    again = Reference.from_json(json.loads(json.dumps(reference.to_json())))
    new = _columns(1000, 1, shift=0.2)
    drift = compare(reference, _summary(reference, new))
    assert compare(again, _summary(again, new)) == drift
    assert compare(again, _summary(reference, new)) == drift
    assert again.to_json() == reference.to_json()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 0}, "format 0, this release reads 1"),
        ({"rows": 7}, "do not add up"),
        ({"score_edges": [0.0]}, "do not add up"),
        ({"mean": None}, "no drift reference"),
    ],
)
def test_a_damaged_reference_is_refused(change: dict, message: str) -> None:
    content = Reference.from_rows(_columns(100), K).to_json()
    with pytest.raises(ValueError, match=message):
        Reference.from_json({**content, **change})
    with pytest.raises(ValueError, match="no drift reference: KeyError"):
        Reference.from_json({"format": 1})


def test_a_mixture_is_compared_by_the_ratio_of_squared_mahalanobis_distances() -> None:
    # One standard normal component in 12 dimensions; the new points are 1.5 times as spread.
    rng, width = np.random.default_rng(0), 12

    def columns(num_rows: int, spread: float) -> dict:
        x = spread * rng.standard_normal((num_rows, width))
        log_likelihood = -0.5 * (np.square(x).sum(axis=1) + width * np.log(2 * np.pi))
        cluster = np.zeros(num_rows, np.int32)
        return {"log_likelihood": log_likelihood, "cluster": cluster, "score": x[:, 0]}

    reference = Reference.from_rows(columns(50_000, 1.0), 1, width=width)
    drift = compare(reference, _summary(reference, columns(20_000, 1.5)))
    assert drift.inertia_ratio == pytest.approx(2.25, rel=0.02)
    assert drift.cluster_psi == 0 and drift.cluster_p == 1


def test_points_on_their_centroids_have_no_inertia() -> None:
    still = {**_columns(500), "d1": np.zeros(500)}
    reference = Reference.from_rows(still, K)
    same = compare(reference, _summary(reference, still))
    assert (same.inertia_ratio, same.inertia_p) == (1.0, 1.0)
    moved = compare(reference, _summary(reference, {**still, "d1": np.ones(500)}))
    assert (moved.inertia_ratio, moved.inertia_p) == (np.inf, 0.0)


def test_summaries_of_another_reference_are_refused() -> None:
    reference, other = (Reference.from_rows(_columns(500, seed), K) for seed in (0, 1))
    with pytest.raises(ValueError, match="for another reference"):
        compare(reference, _summary(other, _columns(100)))
    with pytest.raises(ValueError, match="only summaries for one reference"):
        reference.summary().merge(other.summary())
    with pytest.raises(ValueError, match="without rows"):
        compare(reference, reference.summary())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d1": None}, "column d1 or log_likelihood, found cluster, score"),
        ({"score": None}, r"needs the column\(s\) score"),
        ({"score": np.full(100, np.nan)}, "100 of 100 values of score are not finite"),
        ({"d1": np.full(100, np.inf)}, "values of d1 are not finite"),
        ({"cluster": np.full(100, K)}, r"clusters must be in \[0, 6\), found 6 to 6"),
        ({"cluster": np.zeros(99, int)}, r"must be \(N,\)"),
    ],
)
def test_columns_that_cannot_be_compared_are_refused(change: dict, message: str) -> None:
    columns = {k: v for k, v in {**_columns(100), **change}.items() if v is not None}
    with pytest.raises(ValueError, match=message):
        Reference.from_rows(columns, K)
    summary = Reference.from_rows(_columns(100), K).summary()
    with pytest.raises(ValueError, match=message):
        summary.add(columns)
    assert summary.num_rows == 0


def test_a_reference_needs_rows_and_a_mixture_its_width() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        Reference.from_rows(_columns(0), K)
    mixture = {**_columns(10), "log_likelihood": np.zeros(10)}
    del mixture["d1"]
    with pytest.raises(ValueError, match="needs the width"):
        Reference.from_rows(mixture, K)
