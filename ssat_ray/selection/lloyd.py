"""Exact distributed Lloyd iterations: every holder of points returns sums, counts and inertia only.

The totals are exact (exact.py), so centroids are bit-identical for any number of actors and any
sharding of the pool on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ssat_ray.selection.exact import ExactSum, Grid
from ssat_ray.selection.points import MOST_BLOCK_ROWS, block_rows, blocks
from ssat_ray.selection.scores import Float32, Int64

_GROUP_ROWS = 10 * MOST_BLOCK_ROWS
"""Rows whose sums float64 takes before they go into an ExactSum; points beyond the grid's range make
an inertia that overflows there, and raises, before any other sum is rounded."""
_INERTIA_BITS = 37
"""Of a squared distance; with 2**15 rows within float64's 53."""


@dataclass(frozen=True, eq=False)
class LloydStatistics:
    """What one assignment step leaves of the points: everything the update needs.

    Attributes:
        sums: of the points of each cluster, (k, p).
        counts: (k,) int64 points in each cluster.
        inertia: sum over the points of the squared distance to their centroid.
    """

    sums: ExactSum
    counts: Int64
    inertia: ExactSum

    def merge(self, other: LloydStatistics) -> LloydStatistics:
        """The totals over both holders' points; changes self's sums."""
        self.sums.merge(other.sums)
        self.counts[:] += other.counts
        self.inertia.merge(other.inertia)
        return self

    def centroids(self, before: Float32) -> Float32:
        """(k, p) means of the points of each cluster; of an empty one the centroid `before`."""
        means = before.copy()
        filled = self.counts > 0
        means[filled] = self.sums.value()[filled] / self.counts[filled, None]
        return means


def inertia_grid(grid: Grid, width: int) -> Grid:
    """A grid for squared distances between points of `width` coordinates on `grid`."""
    largest = math.ldexp(1.0, grid.exponent + grid.bits)
    return Grid.for_values(4 * width * largest**2, _INERTIA_BITS)


class LloydPoints:
    """The points of one holder and the centroid of each, so that an iteration sums only what moved.

    Sums are exact, so adding a point to its new cluster and taking it from its old one leaves the
    same bits as summing anew. Holds 4 bytes a point besides the points.

    Args:
        points: (n, p) float32 on `grid`, not copied; every iteration reads them once.
        grid: of the points.
        num_clusters: k.
    """

    def __init__(self, points: torch.Tensor, grid: Grid, num_clusters: int) -> None:
        width = points.shape[1]
        self._points, self._grid = points, grid
        self._squared = inertia_grid(grid, width)
        assert min(grid.block_rows, self._squared.block_rows) >= 2 * _GROUP_ROWS
        # Cluster k is none: where every point starts.
        self._sums = ExactSum((num_clusters + 1, width), grid)
        self._counts = np.zeros(num_clusters + 1, np.int64)
        self._labels = torch.full((len(points),), num_clusters, dtype=torch.float32)

    def statistics(self, centroids: Float32) -> LloydStatistics:
        """Assign every point to the nearest of (k, p) centroids, ties to the lowest index, and sum."""
        nearest = _Nearest(centroids)
        inertia = ExactSum((), self._squared)
        move = _Move(nearest.rows, *self._sums.shape)
        for group, labels in zip(
            self._points.split(_GROUP_ROWS), self._labels.split(_GROUP_ROWS), strict=True
        ):
            squares = torch.zeros((), dtype=torch.float64)
            for rows, block in blocks(group, nearest.rows):
                real = rows.stop - rows.start
                found, distance = nearest(block)
                move(block[:real], labels[rows], found[:real])
                squares += self._squared.round_(distance[:real].double()).sum()
            inertia.add(squares)
            self._sums.add(move.joined - move.left)
            move.joined.zero_()
            move.left.zero_()
        self._counts += move.counts.numpy()
        return LloydStatistics(self._sums[:-1], self._counts[:-1].copy(), inertia)


class _Move:
    """What moves between clusters: sums of points that `joined` and `left` each (k + 1, p), and the
    change of the `counts` (k + 1,)."""

    def __init__(self, rows: int, num_clusters: int, width: int) -> None:
        self.joined, self.left = torch.zeros(2, num_clusters, width, dtype=torch.float64)
        self.counts = torch.zeros(num_clusters, dtype=torch.int64)
        self._single = torch.empty(rows, width)
        self._double = torch.empty(rows, width, dtype=torch.float64)

    def __call__(self, block: torch.Tensor, labels: torch.Tensor, found: torch.Tensor) -> None:
        """Sets labels (B,) of the points (B, p) to those found."""
        none = len(self.counts) - 1
        old, new = labels, found
        if float(labels[0]) != none:  # else all of them are of no cluster yet
            moved = torch.ne(found, labels).nonzero().squeeze(1)
            if not len(moved):
                return
            block = torch.index_select(block, 0, moved, out=self._single[: len(moved)])
            old, new = labels[moved], found[moved]
        x, new = self._double[: len(block)].copy_(block), new.long()
        self.joined.index_add_(0, new, x)
        self.counts += torch.bincount(new, minlength=none + 1)
        if float(old[0]) != none:
            old = old.long()
            self.left.index_add_(0, old, x)
            self.counts -= torch.bincount(old, minlength=none + 1)
        labels.copy_(found)


def lloyd_statistics(points: torch.Tensor, centroids: Float32, grid: Grid) -> LloydStatistics:
    """One assignment of points (n, p) float32 on the grid to (k, p) centroids, and their sums."""
    return LloydPoints(points, grid, len(centroids)).statistics(centroids)


class _Nearest:
    """Blocks of `rows` points -> their nearest centroids and distances, in buffers it reuses.

    Reused, because the system clears fresh pages: at 10,000 centroids that takes as long as the
    products.
    """

    def __init__(self, centroids: Float32) -> None:
        num_clusters, width = centroids.shape
        self.rows = block_rows(4 * num_clusters + 12 * width)
        self._c = torch.from_numpy(np.ascontiguousarray(centroids))
        self._half = 0.5 * (self._c * self._c).sum(1, keepdim=True)
        self._rank = torch.arange(num_clusters, 0, -1, dtype=torch.float32)[:, None]
        self._scores = torch.empty(num_clusters, self.rows)
        self._norm, self._best, self._first = torch.empty(3, self.rows)

    def __call__(self, block: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Index of the nearest centroid (B,), whole numbers, and the squared distance to it (B,).

        Both float32, overwritten by the next call. The index is found by comparing with the
        maximum, since `max(dim=0)` branches at every element and takes four times as long.
        """
        torch.linalg.vector_norm(block, dim=1, out=self._norm)  # first: it reads memory in order
        torch.addmm(self._half, self._c, block.t(), beta=-1, out=self._scores)
        torch.amax(self._scores, 0, out=self._best)
        torch.amax(self._scores.eq_(self._best).mul_(self._rank), 0, out=self._first)
        distance = self._norm.mul_(self._norm).sub_(self._best, alpha=2).clamp_(min=0)
        return self._first.neg_().add_(len(self._c)), distance


def farthest(
    points: torch.Tensor, ids: Int64, centroids: Float32, count: int
) -> list[tuple[float, int, Float32]]:
    """The `count` points farthest from their centroid: (squared distance, id, point), ties by id."""
    nearest = _Nearest(centroids)
    distance = np.empty(len(points), np.float32)
    for rows, block in blocks(points, nearest.rows):
        distance[rows] = nearest(block)[1][: rows.stop - rows.start].numpy()
    order = np.lexsort((ids, -distance))[:count]
    return [(float(distance[i]), int(ids[i]), points[i].numpy()) for i in order]


def best(found: list[tuple[float, int, Float32]], count: int) -> list[tuple[float, int, Float32]]:
    """The `count` farthest of what several holders found, ties by id."""
    return sorted(found, key=lambda row: (-row[0], row[1]))[:count]


@dataclass(frozen=True, eq=False)
class Refined:
    """Centroids after exact Lloyd iterations.

    Attributes:
        centroids: (k, p) float32.
        counts: (k,) int64 points of each, by the last assignment.
        inertia: of each assignment step, the last one with `centroids` themselves.
        converged: whether the tolerance was met.
    """

    centroids: Float32
    counts: Int64
    inertia: tuple[float, ...]
    converged: bool


def refine(
    assign: Callable[[Float32], LloydStatistics],
    find_farthest: Callable[[Float32, int], list[tuple[float, int, Float32]]],
    start: Float32,
    *,
    iterations: int,
    tolerance: float,
    history: tuple[float, ...] = (),
    checkpoint: Callable[[Float32, tuple[float, ...]], None] = lambda centroids, history: None,
) -> Refined:
    """Lloyd iterations from `start` until the inertia falls by less than `tolerance` of itself and no cluster is empty.

    Args:
        assign: totals over all points for given centroids.
        find_farthest: the points farthest from given centroids, over all points.
        start: (k, p) float32 centroids.
        iterations: most updates, those of `history` included.
        tolerance: relative; 0 goes on until nothing changes.
        history: inertia of the steps before `start`, when an interrupted run goes on.
        checkpoint: told the centroids and the history before each assignment.

    Empty clusters move to the points farthest from their centroids, ties to the lowest id.
    """
    centroids = np.ascontiguousarray(start, np.float32)
    while True:
        checkpoint(centroids, history)
        found = assign(centroids)
        history = (*history, float(found.inertia.value()))
        empty = np.flatnonzero(found.counts == 0)
        settled = len(history) > 1 and history[-2] - history[-1] <= tolerance * history[-2]
        if settled and not len(empty):
            return Refined(centroids, found.counts, history, True)
        if len(history) > iterations:
            return Refined(centroids, found.counts, history, False)
        updated = found.centroids(centroids)
        if len(empty):
            for cluster, (_, _, point) in zip(
                empty, find_farthest(centroids, len(empty)), strict=True
            ):
                updated[cluster] = point
        centroids = updated
