"""Scores against float64 oracles, closed forms and the reference random generator."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import pairwise_distances

from ssat_ray.selection import scores


def _embeddings(num_points=500, width=24, k=7, offset=0.0, seed=0):
    rng = np.random.default_rng(seed)
    h = (rng.normal(size=(num_points, width)) + offset).astype(np.float32)
    centroids = (rng.normal(size=(k, width)) + offset).astype(np.float32)
    return h, centroids


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_two_nearest_equals_pairwise_distances_in_float64(offset):
    h, centroids = _embeddings(offset=offset)
    # By difference: scikit-learn's default expands the square even in float64.
    full = pairwise_distances(
        h.astype(np.float64), centroids.astype(np.float64), metric="minkowski", p=2
    )
    ordered = np.sort(full, axis=1)
    d1, d2, cluster = scores.two_nearest(h, centroids)
    np.testing.assert_allclose(d1, ordered[:, 0], rtol=1e-6)
    np.testing.assert_allclose(d2, ordered[:, 1], rtol=1e-6)
    np.testing.assert_array_equal(cluster, full.argmin(axis=1))
    assert (d1.dtype, d2.dtype, cluster.dtype) == (np.float32, np.float32, np.int32)


def test_two_nearest_resolves_distances_that_an_expanded_square_loses():
    centroids = np.array([[4096.0, 0.0], [4096.0, 1.0], [0.0, 0.0]], np.float32)
    h = centroids[:1] + np.array([[0.0, 2.0**-10]], np.float32)
    d1, d2, cluster = scores.two_nearest(h, centroids)
    assert d1[0] == 2.0**-10
    assert d2[0] == np.float32(1 - 2.0**-10)
    assert cluster[0] == 0


def test_two_nearest_breaks_ties_by_lowest_index():
    centroids = np.array([[9, 9], [1, 0], [-1, 0], [1, 0]], np.float32)
    d1, d2, cluster = scores.two_nearest(np.array([[0, 0], [1, 0]], np.float32), centroids)
    np.testing.assert_array_equal(cluster, [1, 1])
    np.testing.assert_array_equal(d1, [1, 0])
    np.testing.assert_array_equal(d2, [1, 0])


def test_two_nearest_among_many_that_float32_cannot_tell_apart():
    rng = np.random.default_rng(1)
    centroids = (rng.normal(size=(3, 8)).repeat(20, axis=0) * 100).astype(np.float32)
    centroids += rng.normal(size=centroids.shape).astype(np.float32) * 1e-4
    h = rng.normal(size=(500, 8)).astype(np.float32) * 100
    assert not scores._Shortlist(centroids)(h)[1].any()
    full = pairwise_distances(
        h.astype(np.float64), centroids.astype(np.float64), metric="minkowski", p=2
    )
    d1, d2, cluster = scores.two_nearest(h, centroids)
    np.testing.assert_array_equal(cluster, full.argmin(axis=1))
    np.testing.assert_allclose(d1, np.sort(full, axis=1)[:, 0], rtol=1e-6)
    np.testing.assert_allclose(d2, np.sort(full, axis=1)[:, 1], rtol=1e-6)


@pytest.mark.parametrize("k", [2, 3, 4, 5, 300])
def test_two_nearest_of_few_and_of_many(k):
    h, centroids = _embeddings(num_points=400, k=k)
    full = pairwise_distances(h.astype(np.float64), centroids.astype(np.float64))
    _, d2, cluster = scores.two_nearest(h, centroids)
    np.testing.assert_array_equal(cluster, full.argmin(axis=1))
    np.testing.assert_allclose(d2, np.sort(full, axis=1)[:, 1], rtol=1e-6)


@settings(max_examples=15, deadline=None)
@given(start=st.integers(0, 299), length=st.integers(1, 60), block=st.integers(1, 4000))
def test_two_nearest_rows_do_not_depend_on_company_or_blocks(start, length, block):
    h, centroids = _embeddings(num_points=300, width=33)
    whole = scores.two_nearest(h, centroids)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "_BLOCK_ELEMENTS", block)
        part = scores.two_nearest(h[start : start + length], centroids)
    for whole_column, part_column in zip(whole, part, strict=True):
        np.testing.assert_array_equal(whole_column[start : start + length], part_column)


@pytest.mark.parametrize(
    ("h", "centroids", "message"),
    [
        (np.zeros((3, 2)), np.zeros((1, 2)), "k >= 2, found k = 1"),
        (np.zeros((3, 2)), np.zeros((2, 3)), r"\(3, 2\) and \(2, 3\)"),
        (np.array([[np.nan, 0.0]]), np.zeros((2, 2)), "h holds"),
        (np.zeros((1, 2)), np.array([[0, 0], [np.inf, 0]]), "centroids hold"),
    ],
)
def test_two_nearest_refuses(h, centroids, message):
    with pytest.raises(ValueError, match=message):
        scores.two_nearest(h.astype(np.float32), centroids.astype(np.float32))


def test_kmeans_margin_is_zero_at_the_boundary_and_easy_reverses_it():
    centroids = np.array([[-1, 0], [1, 0]], np.float32)
    h = np.array([[0, 3], [0.5, 0], [1, 0]], np.float32)
    d1, d2, _ = scores.two_nearest(h, centroids)
    np.testing.assert_array_equal(scores.kmeans_margin(d1, d2), [0, 1, 2])
    np.testing.assert_array_equal(scores.easy_score(d1, d2), [0, -1, -2])


def test_confidence_score_equals_its_definition_where_that_is_exact():
    logits = np.random.default_rng(0).normal(size=(200, 5)) * 3
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(
        scores.confidence_score(logits), -np.log(1 - p.max(axis=1)), rtol=1e-9
    )
    confidence, top = scores.top_confidence(logits)
    np.testing.assert_allclose(confidence, p.max(axis=1), rtol=1e-12)
    np.testing.assert_array_equal(top, p.argmax(axis=1))


def test_confidence_score_ranks_where_float64_probabilities_are_one():
    gaps = np.array([0.0, 50.0, 100.0, 1000.0, 5000.0])
    logits = np.stack([gaps, np.zeros(5), np.zeros(5)], axis=1) + 123.0
    # 1 - p_max = 2 / (e^gap + 2), so the score is log(1 + e^gap / 2).
    np.testing.assert_allclose(
        scores.confidence_score(logits), np.logaddexp(0, gaps - np.log(2)), rtol=1e-12
    )
    assert (scores.top_confidence(logits)[0][2:] == 1).all()


@pytest.mark.parametrize("function", [scores.confidence_score, scores.gmm_margin])
def test_scores_of_one_column_are_refused(function):
    with pytest.raises(ValueError, match=r">= 2, found \(4, 1\)"):
        function(np.zeros((4, 1)))


def test_logsumexp_survives_large_and_empty_entries():
    table = np.array([[1e4, 1e4], [-1e4, -np.inf], [-np.inf, -np.inf]])
    expected = [1e4 + np.log(2), -1e4, -np.inf]
    np.testing.assert_allclose(scores.logsumexp(table), expected, rtol=1e-15)


def test_gmm_margin_and_likelihood_equal_a_loop():
    log_joint = np.random.default_rng(1).normal(size=(50, 4)) * 20
    l1, l2, cluster, score = scores.gmm_margin(log_joint)
    likelihood = scores.gmm_log_likelihood(log_joint)
    for i, row in enumerate(log_joint):
        low_to_high = sorted(row)
        assert (l1[i], l2[i]) == (low_to_high[-1], low_to_high[-2])
        assert score[i] == low_to_high[-1] - low_to_high[-2]
        assert cluster[i] == list(row).index(low_to_high[-1])
        assert likelihood[i] == pytest.approx(np.log(np.exp(row).sum()), rel=1e-12)


def test_gmm_margin_of_equal_components_is_zero_and_takes_the_first():
    l1, l2, cluster, score = scores.gmm_margin(np.array([[-9.0, 2.0, 2.0]]))
    assert (l1[0], l2[0], cluster[0], score[0]) == (2.0, 2.0, 1, 0.0)


def test_posterior_saturation_counts_both_sides_of_the_tolerance():
    # Two components: 1 - (p1 - p2) = 2 / (1 + e^gap), equal to tol at gap = log(2 / tol - 1).
    edge = np.log(2 / 1e-6 - 1)
    gaps = np.array([0.0, edge - 1e-3, edge + 1e-3, 800.0])
    log_joint = np.stack([gaps, np.zeros(4)], axis=1) - 5000.0
    assert scores.posterior_saturation(log_joint) == 0.5
    assert scores.posterior_saturation(log_joint, tol=1e-30) == 0.25
    assert scores.posterior_saturation(log_joint, tol=3.0) == 1.0


def _splitmix64(state, num_outputs):
    """The published generator, in Python integers."""
    mask = (1 << 64) - 1
    outputs = []
    for _ in range(num_outputs):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        outputs.append(z ^ (z >> 31))
    return outputs


def test_random_score_is_the_published_generator():
    # First outputs for state 1234567, as published with the reference implementation.
    assert _splitmix64(1234567, 2) == [6457827717110365317, 3203168211198807973]
    (state,) = _splitmix64(5, 1)
    expected = [(bits >> 11) / 2**53 for bits in _splitmix64(state, 20)]
    np.testing.assert_array_equal(scores.random_score(np.arange(20), 5), expected)


def test_random_score_depends_on_id_and_seed_only():
    ids = np.random.default_rng(0).permutation(1000)
    whole = scores.random_score(ids, 3)
    np.testing.assert_array_equal(whole[400:410], scores.random_score(ids[400:410], 3))
    np.testing.assert_array_equal(whole, scores.random_score(ids.astype(np.int32), 3))
    assert not (whole == scores.random_score(ids, 4)).any()


def test_random_score_is_uniform_and_uncorrelated_between_seeds():
    first = scores.random_score(np.arange(100_000), 0)
    second = scores.random_score(np.arange(100_000), 1)
    assert first.min() >= 0
    assert first.max() < 1
    counts = np.bincount((first * 50).astype(int), minlength=50)
    assert ((counts - 2000) ** 2 / 2000).sum() < 100  # chi-squared, 49 degrees: p < 1e-5
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.02
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 0.02


def test_random_score_refuses_float_ids():
    with pytest.raises(ValueError, match="ids must be integers, found float64"):
        scores.random_score(np.array([0.0]), 0)
