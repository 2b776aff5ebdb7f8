"""Exact Lloyd iterations: against scikit-learn, and the same bits for any split and order of the rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from ssat_ray.selection.lloyd import LloydStatistics, farthest, lloyd_statistics, refine
from ssat_ray.selection.points import Frame


def embeddings(rows: int = 5003, width: int = 12, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(7, width)) * 3
    h = centres[rng.integers(7, size=rows)] + rng.normal(size=(rows, width)) + 5
    return h.astype(np.float32)


H = embeddings()
FRAME = Frame.fit(H[:1000], bits=24)
X = FRAME.points(H)


def assign(centroids: np.ndarray) -> LloydStatistics:
    return lloyd_statistics(X, centroids, FRAME.grid)


def find(centroids: np.ndarray, count: int) -> list[tuple[float, int, np.ndarray]]:
    return farthest(X, np.arange(len(X)), centroids, count)


@pytest.mark.parametrize("cuts", [[], [1], [2048], [777, 3000], [10, 20, 30, 4000]])
def test_statistics_do_not_depend_on_order_and_sharding(cuts: list[int]) -> None:
    whole = assign(X[:9].numpy())
    order = np.random.default_rng(1).permutation(len(H))
    pieces = np.split(H[order], cuts)
    total = lloyd_statistics(FRAME.points(pieces[0]), X[:9].numpy(), FRAME.grid)
    for piece in pieces[1:]:
        total.merge(lloyd_statistics(FRAME.points(piece), X[:9].numpy(), FRAME.grid))
    np.testing.assert_array_equal(total.sums.value(), whole.sums.value())
    np.testing.assert_array_equal(total.counts, whole.counts)
    assert total.inertia.value() == whole.inertia.value()


def test_statistics_against_a_float64_loop() -> None:
    c = X[:9].numpy()
    x = X.double().numpy()
    squared = np.square(x[:, None] - c[None].astype(np.float64)).sum(2)
    label = squared.argmin(1)
    found = assign(c)
    np.testing.assert_array_equal(found.counts, np.bincount(label, minlength=9))
    sums = np.stack([x[label == j].sum(0) for j in range(9)])
    np.testing.assert_allclose(found.sums.value(), sums, rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(float(found.inertia.value()), squared.min(1).sum(), rtol=1e-5)


def test_iterations_are_those_of_scikit_learn() -> None:
    start = X[:7].numpy()
    found = refine(assign, find, start, iterations=100, tolerance=0.0)
    reference = KMeans(7, init=start, n_init=1, max_iter=100, tol=0).fit(X.numpy())
    assert found.converged
    np.testing.assert_allclose(found.inertia[-1], reference.inertia_, rtol=1e-4)
    np.testing.assert_allclose(found.centroids, reference.cluster_centers_, atol=2e-2)
    assert all(b <= a * (1 + 1e-6) for a, b in zip(found.inertia, found.inertia[1:], strict=False))


def test_an_interrupted_refinement_ends_the_same() -> None:
    seen: list[tuple[np.ndarray, tuple[float, ...]]] = []
    settings = {"iterations": 12, "tolerance": 1e-6}
    whole = refine(
        assign, find, X[:7].numpy(), **settings, checkpoint=lambda c, h: seen.append((c.copy(), h))
    )
    centroids, history = seen[3]
    resumed = refine(assign, find, centroids, **settings, history=history)
    np.testing.assert_array_equal(resumed.centroids, whole.centroids)
    assert resumed.inertia == whole.inertia


def test_an_empty_cluster_moves_to_the_farthest_point() -> None:
    start = np.concatenate([X[:6].numpy(), np.full((1, X.shape[1]), 1e4, np.float32)])
    (distance, row, point), *_ = find(start, 1)
    squared = np.square(X.numpy()[:, None] - start[None]).sum(2).min(1)
    assert row == squared.argmax() and np.isclose(distance, squared.max(), rtol=1e-5)
    np.testing.assert_array_equal(point, X[row].numpy())
    found = refine(assign, find, start, iterations=50, tolerance=0.0)
    assert (found.counts > 0).all()


def test_points_have_the_same_bits_in_any_batch() -> None:
    components = np.linalg.qr(np.random.default_rng(0).normal(size=(12, 12)))[0][:5]
    frame = Frame.fit(H[:1000], bits=21, scaled=True, components=components)
    whole = frame.points(H)
    assert whole.dtype == torch.float32 and whole.shape == (len(H), 5)
    for start in (0, 1, 2047, 4000):
        np.testing.assert_array_equal(frame.points(H[start : start + 5]), whole[start : start + 5])
    expected = (H.astype(np.float64) - frame.mean) @ components.T
    expected = np.ldexp(expected, -frame.exponents)
    np.testing.assert_allclose(whole.numpy(), expected, atol=frame.grid.unit)
