"""k-means against scikit-learn on three kinds of data, and what FAISS's defaults get wrong."""

import warnings

import numpy as np
import pytest
from sklearn.cluster import KMeans as ScikitKMeans
from sklearn.datasets import load_digits, make_blobs

from ssat_ray.bench.kmeans import digits_embeddings
from ssat_ray.config import ClusterConfig
from ssat_ray.selection.kmeans import fit_kmeans


def _many_blobs():
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(50, 32)) * 10
    return centers[rng.integers(50, size=3000)] + rng.normal(size=(3000, 32))


def _uniform(seed):
    return np.random.default_rng(seed).random((1500, 2))


# On noise with many centroids scikit-learn's own 10 starts scatter by 0.5 %, so the noise cases
# have few centroids, or more starts here than there.
CASES = {
    "blobs": (lambda: make_blobs(2000, 8, centers=10, random_state=0)[0], 10, 10),
    "many blobs": (_many_blobs, 50, 10),
    "digits, pixels": (lambda: load_digits().data / 16, 10, 10),
    "digits, embeddings": (digits_embeddings, 10, ClusterConfig().restarts),
    "noise, k = 4": (lambda: _uniform(0), 4, 10),
    "noise, k = 6": (lambda: _uniform(1), 6, 40),
}


@pytest.mark.parametrize("name", CASES)
def test_inertia_within_a_thousandth_of_scikit_learn(name):
    make, k, restarts = CASES[name]
    h = make()
    expected = ScikitKMeans(k, n_init=10, random_state=0).fit(h).inertia_
    found = fit_kmeans(h.astype(np.float32), k, restarts=restarts)
    assert found.inertia <= 1.001 * expected


@pytest.fixture(scope="module")
def digits():
    h = load_digits().data.astype(np.float32) / 16
    return h, fit_kmeans(h, 10, iterations=200)


def test_inertia_and_counts_are_those_of_the_centroids(digits):
    h, found = digits
    squared = ((h.astype(np.float64)[:, None] - found.centroids.astype(np.float64)) ** 2).sum(2)
    assert found.inertia == pytest.approx(squared.min(axis=1).sum(), rel=1e-6)
    np.testing.assert_array_equal(found.counts, np.bincount(squared.argmin(axis=1)))


def test_objective_falls_to_the_inertia(digits):
    _, found = digits
    trace = np.array(found.inertia_per_iteration)
    assert len(trace) > 2
    assert (np.diff(trace) <= 1e-6 * trace[0]).all()
    assert trace[-1] == pytest.approx(found.inertia, rel=1e-5)


def test_every_row_is_used():
    # FAISS's default trains on 2 x 256 of these rows, so its means would be off by about 1 / 16.
    h = np.random.default_rng(0).normal(size=(6000, 3)).astype(np.float32)
    h[:3000, 0] += 20
    found = fit_kmeans(h, 2, restarts=1)
    means = np.stack([h[3000:].mean(axis=0, dtype=float), h[:3000].mean(axis=0, dtype=float)])
    np.testing.assert_allclose(found.centroids, means, atol=1e-4)
    np.testing.assert_array_equal(found.counts, [3000, 3000])


def test_starts_are_k_means_plus_plus_not_random_rows():
    # 10 of 10 far clusters are hit at the first step; 10 random rows hit all with odds 0.04 %.
    rng = np.random.default_rng(0)
    h = (np.repeat(np.eye(10) * 1000, 100, axis=0) + rng.normal(size=(1000, 10))).astype(np.float32)
    for seed in range(3):
        found = fit_kmeans(h, 10, restarts=1, iterations=1, seed=seed)
        np.testing.assert_array_equal(found.counts, np.full(10, 100))
        assert found.inertia_per_iteration[0] < 1e5


def test_restarts_keep_the_best():
    h = _uniform(2).astype(np.float32)
    one = [fit_kmeans(h, 10, restarts=1, seed=s).inertia for s in range(5)]
    many = fit_kmeans(h, 10, restarts=20).inertia
    assert many < np.median(one)
    assert many <= fit_kmeans(h, 10, restarts=1).inertia


def test_dealt_restarts_find_what_one_fit_finds():
    h = _uniform(2).astype(np.float32)
    whole = fit_kmeans(h, 10, restarts=7, seed=3)
    parts = [fit_kmeans(h, 10, restarts=7, seed=3, starts=range(i, 7, 3)) for i in range(3)]
    best = min(parts, key=lambda fit: fit.rank)
    assert best.rank == whole.rank
    np.testing.assert_array_equal(best.centroids, whole.centroids)
    assert len({fit.start for fit in parts}) == 3


def test_an_offset_does_not_change_the_clustering():
    # Multiples of 1 / 128 survive the addition exactly; FAISS on uncentred rows is 18 % worse.
    h = make_blobs(1500, 8, centers=3, cluster_std=0.3, center_box=(0, 2), random_state=0)[0]
    h = (np.round(h * 128) / 128).astype(np.float32)
    plain, shifted = fit_kmeans(h, 3), fit_kmeans(h + np.float32(65536), 3)
    assert shifted.inertia == pytest.approx(plain.inertia, rel=1e-3)
    np.testing.assert_array_equal(shifted.counts, plain.counts)


def test_same_seed_same_result_in_canonical_order():
    h = _uniform(4).astype(np.float32)
    first, second = fit_kmeans(h, 5, seed=7), fit_kmeans(h, 5, seed=7)
    np.testing.assert_array_equal(first.centroids, second.centroids)
    assert first.inertia_per_iteration == second.inertia_per_iteration
    rows = [tuple(c) for c in first.centroids.tolist()]
    assert rows == sorted(rows)


def test_as_many_centroids_as_rows():
    h = _uniform(5)[:6].astype(np.float32)
    found = fit_kmeans(h, 6)
    assert found.inertia == pytest.approx(0, abs=1e-10)
    np.testing.assert_array_equal(found.counts, np.ones(6))


def test_identical_rows_do_not_hang():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fit_kmeans(np.ones((20, 3), np.float32), 2)
    assert found.inertia == pytest.approx(0, abs=1e-4)
    assert found.counts.sum() == 20


@pytest.mark.parametrize("k", [1, 21])
def test_k_out_of_range_names_the_setting(k):
    with pytest.raises(ValueError, match=rf"cluster\.k .* \(20\), found {k}"):
        fit_kmeans(np.zeros((20, 3), np.float32), k)


def test_rows_that_are_not_finite_are_counted():
    h = np.zeros((20, 3), np.float32)
    h[4, 1], h[7, 0] = np.nan, np.inf
    with pytest.raises(ValueError, match="2 of 20 embeddings are not finite"):
        fit_kmeans(h, 2)


@pytest.mark.parametrize("setting", ["restarts", "iterations"])
def test_no_restart_or_iteration_is_refused(setting):
    with pytest.raises(ValueError, match=rf"cluster\.{setting} must be at least 1, found 0"):
        fit_kmeans(np.zeros((20, 3), np.float32), 2, **{setting: 0})
