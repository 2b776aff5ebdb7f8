"""Verdicts: rows of the same distribution are stable at any size, shifted ones are not."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssat_ray.selection.drift import Drift, Reference, compare
from ssat_ray.selection.verdict import Thresholds, Verdict, verdict


def _columns(num_rows: int, seed: int, k: int, spread: float = 1.0, classes=None) -> dict:
    """Points about k centres: heavy-tailed distances, unequal shares."""
    rng = np.random.default_rng(seed)
    shares = 1.0 / np.arange(2, k + 2)
    cluster = rng.choice(k if classes is None else classes, num_rows, p=_normed(shares, classes))
    d1 = spread * rng.gamma(6.0, 1.0, num_rows)
    return {"d1": d1, "cluster": cluster, "score": rng.gamma(2.0, 3.0, num_rows) + 6.0 - d1}


def _normed(shares: np.ndarray, classes) -> np.ndarray:
    shares = shares if classes is None else shares[classes]
    return shares / shares.sum()


def _judge(reference: Reference, *generations: list[dict]) -> Verdict:
    whole, batches, drifts = reference.summary(), {}, []
    for number, shards in enumerate(generations, start=1):
        batch = reference.summary()
        for columns in shards:
            summary = reference.summary()
            summary.add(columns)
            batch.merge(summary)
            drifts.append(compare(reference, summary))
        whole.merge(batch)
        batches[number] = compare(reference, batch)
    return verdict(compare(reference, whole), batches, drifts)


def _verdict(shards: list[Drift], whole: Drift) -> Verdict:
    """Of a single generation."""
    return verdict(whole, {1: whole}, shards)


REFERENCES = {k: Reference.from_rows(_columns(200_000, 0, k), k) for k in (2, 10, 300, 5000)}


# Derandomised: a false alarm is rare, not impossible.
@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    k=st.sampled_from(sorted(REFERENCES)),
    sizes=st.lists(st.integers(200, 20_000), min_size=1, max_size=5),
    seed=st.integers(1, 2**32 - 1),
)
def test_rows_of_the_same_distribution_are_stable(k, sizes, seed) -> None:
    shards = [_columns(size, seed + i, k) for i, size in enumerate(sizes)]
    found = _judge(REFERENCES[k], shards)
    assert found.status == "stable" and found.exit_code == 0, found
    assert {s.status for s in found.shards} == {"stable"}


# Derandomised for the same reason.
@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    k=st.sampled_from([2, 10, 300]),
    sizes=st.lists(
        st.lists(st.integers(200, 10_000), min_size=1, max_size=3), min_size=2, max_size=10
    ),
    seed=st.integers(1, 2**32 - 1),
)
def test_many_generations_of_the_same_distribution_are_stable(k, sizes, seed) -> None:
    generations = [
        [_columns(size, seed + 10 * i + j, k) for j, size in enumerate(batch)]
        for i, batch in enumerate(sizes)
    ]
    found = _judge(REFERENCES[k], *generations)
    assert found.status == "stable", found
    assert {batch.status for batch in found.generations} == {"stable"}


SHIFTS = {
    "nertia per image is 1.4": lambda c: {**c, "d1": 1.2 * c["d1"]},
    "core's distribution functions": lambda c: {**c, "score": c["score"] + 2.0},
    "luster shares": lambda c: {**c, "cluster": np.where(c["id"] % 4 == 0, 3, c["cluster"])},
}


@pytest.mark.parametrize("num_clean", [0, 1, 2, 4, 9])
@pytest.mark.parametrize("words", SHIFTS)
def test_a_shifted_generation_is_found_after_clean_ones(num_clean: int, words: str) -> None:
    clean = [[_columns(5000, 31 + i, 10)] for i in range(num_clean)]
    shifted = SHIFTS[words]({**_columns(5000, 30, 10), "id": np.arange(5000)})
    found = _judge(REFERENCES[10], *clean, [shifted])
    assert found.status == "re-cluster" and found.exit_code == 3
    assert [batch.status for batch in found.generations] == ["stable"] * num_clean + ["re-cluster"]
    if num_clean > 1:
        assert found.together.status != "re-cluster"
        assert found.reason.startswith(f"Generation {num_clean + 1} alone: ")
    assert words in found.reason


def test_generations_that_drift_slowly_are_found_together() -> None:
    """Ten batches too small to be certain of: all of them are certain."""
    generations = [[_columns(30, 50 + i, 10, spread=1.2)] for i in range(10)]
    found = _judge(REFERENCES[10], *generations)
    assert found.status == "re-cluster" and found.reason.startswith("All new rows together: ")
    assert "re-cluster" not in {batch.status for batch in found.generations}


@settings(deadline=None, max_examples=30)
@given(
    k=st.sampled_from(sorted(REFERENCES)),
    sizes=st.lists(st.integers(200, 20_000), min_size=1, max_size=4),
    seed=st.integers(1, 2**32 - 1),
)
def test_clearly_shifted_rows_call_for_clustering_again(k, sizes, seed) -> None:
    shards = [_columns(size, seed + i, k, spread=1.5) for i, size in enumerate(sizes)]
    found = _judge(REFERENCES[k], shards)
    assert found.status == "re-cluster" and found.exit_code == 3
    assert {s.status for s in found.shards} == {"re-cluster"}
    assert "nertia per image is 2" in found.reason and "limit 1.25" in found.reason


def test_other_cluster_shares_alone_call_for_clustering_again() -> None:
    found = _judge(REFERENCES[10], [_columns(5000, 7, 10, classes=np.arange(3, 10))])
    assert found.status == "re-cluster"
    assert found.reason.startswith("All new rows together: Cluster shares have a PSI of")
    assert "most in cluster 0, from 24.7% to 0.0%" in found.reason
    assert "nertia" not in found.reason


def test_shards_by_class_are_watched_if_all_rows_together_are_stable() -> None:
    rows = _columns(60_000, 5, 10)
    order = np.argsort(rows["cluster"], kind="stable")
    shards = [{n: c[part] for n, c in rows.items()} for part in np.array_split(order, 8)]
    found = _judge(REFERENCES[10], shards)
    assert found.together.status == found.generations[0].status == "stable"
    assert {s.status for s in found.shards} == {"re-cluster"}
    assert found.status == "watch" and found.exit_code == 0
    assert "8 of 8 new shards are not (number 0, 1, 2, 3, 4, ...)" in found.reason


SAME = Drift(
    num_rows=250_000,
    inertia=1.0,
    reference_inertia=1.0,
    inertia_ratio=1.0,
    inertia_p=0.5,
    cluster_psi=0.0,
    cluster_psi_expected=0.0,
    cluster_p=0.5,
    score_psi=0.0,
    score_psi_expected=0.0,
    score_p=0.5,
    ks=0.0,
    ks_p=0.5,
    moved=0,
    moved_from=0.1,
    moved_to=0.1,
)


def test_what_is_within_its_limit_is_no_reason_to_cluster_again() -> None:
    watched = dataclasses.replace(SAME, ks=0.15, ks_p=1e-12)
    both = dataclasses.replace(watched, inertia_ratio=1.5, inertia_p=1e-12)
    assert "functions differ by up to 0.150" in _verdict([watched], watched).reason
    found = _verdict([both], both)
    assert found.status == "re-cluster" and "nertia per image is 1.5" in found.reason
    assert "differ" not in found.reason


@pytest.mark.parametrize(
    ("size", "p", "small", "watched", "large"),
    [
        ("cluster_psi", "cluster_p", 0.099, 0.1, 0.2),
        ("score_psi", "score_p", 0.099, 0.1, 0.2),
        ("ks", "ks_p", 0.099, 0.1, 0.2),
        ("inertia_ratio", "inertia_p", 1.12, 1.126, 1.25),
        ("inertia_ratio", "inertia_p", 0.9, 0.88, 0.79),
        ("inertia_ratio", "inertia_p", 0.9, 0.88, -1.0),
    ],
)
def test_each_measure_counts_if_large_and_significant(size, p, small, watched, large) -> None:
    for value, status in ((small, "stable"), (watched, "watch"), (large, "re-cluster")):
        drift = dataclasses.replace(SAME, **{size: value, p: 1e-12})
        assert _verdict([drift], drift).status == status
        chance = dataclasses.replace(SAME, **{size: value, p: 1e-3})
        assert _verdict([chance], chance).status == "stable"


def test_significance_is_shared_out_among_shards_and_generations() -> None:
    drift = dataclasses.replace(SAME, ks=0.3, ks_p=5e-5)
    assert _verdict([drift], drift).status == "re-cluster"
    assert _verdict([drift] * 50, drift).status == "stable"
    assert verdict(drift, dict.fromkeys(range(50), drift), [drift]).status == "stable"


@pytest.mark.parametrize(
    "limits", [{"psi": 0.0}, {"ks": 1.5}, {"inertia": 1.0}, {"watch": 2.0}, {"significance": 0.0}]
)
def test_limits_out_of_range_are_named(limits: dict[str, float]) -> None:
    (name,) = limits
    with pytest.raises(ValueError, match=f"drift threshold {name} is out of range"):
        Thresholds(**limits)
