"""Exact Lloyd iterations: against scikit-learn, and the same bits for any split and order of the rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from ssat_ray.selection.lloyd import (
    LloydPoints,
    LloydStatistics,
    _Nearest,
    best,
    farthest,
    lloyd_statistics,
    refine,
)
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


def test_two_empty_clusters_over_two_holders_take_the_lowest_ids_of_a_tie() -> None:
    x = np.zeros((40, 2), np.float32)
    x[:, 0] = np.arange(40) % 4 * 0.25
    x[[7, 13, 30, 31]] = [[0, 8], [0, -8], [0, 8], [0, -8]]  # four points equally far out
    frame = Frame.fit(x, bits=24)
    points, ids = frame.points(x), np.arange(40)[::-1].copy()  # the last row has the lowest id
    halves = [(points[:20], ids[:20]), (points[20:], ids[20:])]

    def assign_halves(centroids: np.ndarray) -> LloydStatistics:
        first, second = (lloyd_statistics(part, centroids, frame.grid) for part, _ in halves)
        return first.merge(second)

    asked = []

    def find_in_halves(centroids: np.ndarray, count: int) -> list[tuple[float, int, np.ndarray]]:
        found = [row for part, own in halves for row in farthest(part, own, centroids, count)]
        asked.append([row[1] for row in best(found, count)])
        return best(found, count)

    start = np.concatenate([points[:1].numpy(), np.full((2, 2), 1e3, np.float32)])
    done = refine(assign_halves, find_in_halves, start, iterations=50, tolerance=0.0)
    assert asked[0] == [8, 9]
    assert done.converged and (done.counts > 0).all() and done.counts.sum() == 40


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_tolerance_is_relative(scale: float) -> None:
    """The same data in other units stop at the same iteration, the first whose relative fall is small enough."""
    frame = Frame.fit(H[:1000] * np.float32(scale), bits=24)
    x = frame.points(H * np.float32(scale))
    start = x[:30].numpy()

    def refined(tolerance: float) -> tuple[float, ...]:
        done = refine(
            lambda c: lloyd_statistics(x, c, frame.grid),
            lambda c, n: farthest(x, np.arange(len(x)), c, n),
            start,
            iterations=200,
            tolerance=tolerance,
        )
        assert done.converged
        return done.inertia

    whole, tolerance = np.array(refined(0.0)), 2e-3
    falls = (whole[:-1] - whole[1:]) / whole[:-1]
    expected = int(np.flatnonzero(falls <= tolerance)[0]) + 2
    assert 3 < expected < len(whole)
    assert len(refined(tolerance)) == expected


def test_an_empty_cluster_is_no_convergence() -> None:
    """Whatever the tolerance: the second assignment finds one empty, so it moves and there is a third."""
    start = np.concatenate([X[:6].numpy(), np.full((1, X.shape[1]), 1e4, np.float32)])
    seen = []

    def assign_and_see(centroids: np.ndarray) -> LloydStatistics:
        found = assign(centroids)
        seen.append(int((found.counts == 0).sum()))
        return found

    def far_away(centroids: np.ndarray, count: int) -> list[tuple[float, int, np.ndarray]]:
        if len(seen) > 1:
            return find(centroids, count)
        return [(0.0, 0, np.full(X.shape[1], 2e4, np.float32))]

    done = refine(assign_and_see, far_away, start, iterations=50, tolerance=1.0)
    assert seen == [1, 1, 0] and done.converged and (done.counts > 0).all()


def test_points_that_moved_leave_the_sums_of_a_new_count() -> None:
    holder = LloydPoints(X, FRAME.grid, 9)
    kept = []
    for start in (0, 100, 200, 200, 300):  # once nothing moves
        centroids = X[start : start + 9].numpy()
        found, anew = holder.statistics(centroids), assign(centroids)
        kept.append((found.sums.value().copy(), found))
        np.testing.assert_array_equal(found.sums.value(), anew.sums.value())
        np.testing.assert_array_equal(found.counts, anew.counts)
        assert found.inertia.value() == anew.inertia.value()
    for before, found in kept:  # later iterations leave what was handed out as it was
        np.testing.assert_array_equal(found.sums.value(), before)


def test_ties_go_to_the_lowest_index() -> None:
    c = X[[0, 1, 1, 0]].numpy()
    assert assign(c).counts.tolist()[2:] == [0, 0]


@pytest.mark.parametrize("width", [8, 33, 128, 255])
@pytest.mark.parametrize("num_clusters", [2, 7, 50, 1000])
def test_the_place_in_a_block_changes_no_bit(
    width: int, num_clusters: int, one_thread: None
) -> None:
    rng = np.random.default_rng(5)
    nearest = _Nearest(rng.normal(size=(num_clusters, width)).astype(np.float32))
    block = torch.from_numpy(rng.normal(size=(nearest.rows, width)).astype(np.float32))
    index, distance = (t.clone() for t in nearest(block))
    for shift in (1, 5, 24, nearest.rows // 2 + 3):
        found, found_distance = nearest(block.roll(shift, 0))
        assert torch.equal(found.roll(-shift), index)
        assert torch.equal(found_distance.roll(-shift), distance)


def test_many_clusters_and_wide_points_take_smaller_blocks() -> None:
    rng = np.random.default_rng(0)
    h = rng.normal(size=(700, 300)).astype(np.float32)
    frame = Frame.fit(h, bits=24)
    x = frame.points(h)
    c = x[rng.permutation(700)[:600]].numpy() + np.float32(0.5)
    found = lloyd_statistics(x, c, frame.grid)
    squared = np.square(x.double().numpy()[:, None] - c[None].astype(np.float64)).sum(2)
    np.testing.assert_array_equal(found.counts, np.bincount(squared.argmin(1), minlength=600))


def test_points_far_out_of_range_raise_before_a_sum_is_rounded() -> None:
    x = X.clone()
    x[7] = 2.0**60
    with pytest.raises(OverflowError):
        lloyd_statistics(x, X[:9].numpy(), FRAME.grid)


def test_centroids_of_empty_clusters_stay() -> None:
    start = np.concatenate([X[:2].numpy(), np.full((1, X.shape[1]), 1e4, np.float32)])
    found = assign(start)
    means = found.centroids(start)
    np.testing.assert_array_equal(means[2], start[2])
    np.testing.assert_allclose(
        (means * found.counts[:, None])[:2].sum(0), X.double().sum(0), rtol=1e-4, atol=0.1
    )
