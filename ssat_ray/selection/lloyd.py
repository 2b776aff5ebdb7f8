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
from ssat_ray.selection.points import blocks, groups
from ssat_ray.selection.scores import Float32, Int64


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
        """The totals over both holders' points; changes self."""
        self.sums.merge(other.sums)
        self.counts[:] += other.counts
        self.inertia.merge(other.inertia)
        return self


def inertia_grid(grid: Grid, width: int) -> Grid:
    """A grid for squared distances between points of `width` coordinates on `grid`."""
    largest = math.ldexp(1.0, grid.exponent + grid.bits)
    return Grid.for_values(4 * width * largest**2, 40)


def lloyd_statistics(points: torch.Tensor, centroids: Float32, grid: Grid) -> LloydStatistics:
    """Assign points (n, p) float32 on the grid to the nearest of (k, p) centroids, and sum.

    Ties go to the lowest centroid index.
    """
    num_clusters, width = centroids.shape
    squared = inertia_grid(grid, width)
    sums, inertia = ExactSum((num_clusters, width), grid), ExactSum((), squared)
    counts = np.zeros(num_clusters, np.int64)
    c = torch.from_numpy(np.ascontiguousarray(centroids))
    for group in groups(points):
        total = torch.zeros(num_clusters, width, dtype=torch.float64)
        squares = torch.zeros((), dtype=torch.float64)
        for rows, block in blocks(group):
            label, distance = _nearest(block, c)
            real = rows.stop - rows.start
            label, distance = label[:real], distance[:real]
            total.index_add_(0, label, block[:real].double())
            counts += torch.bincount(label, minlength=num_clusters).numpy()
            squares += squared.round(distance.double()).sum()
        sums.add(total)
        inertia.add(squares)
    return LloydStatistics(sums, counts, inertia)


def _nearest(block: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Index (B,) int64 of the nearest centroid, and the squared distance to it (B,) float32."""
    half = 0.5 * (c * c).sum(1, keepdim=True)
    best, label = torch.addmm(half, c, block.t(), beta=-1).max(dim=0)
    return label, ((block * block).sum(1) - 2 * best).clamp_(min=0)


def farthest(
    points: torch.Tensor, ids: Int64, centroids: Float32, count: int
) -> list[tuple[float, int, Float32]]:
    """The `count` points farthest from their centroid: (squared distance, id, point), ties by id."""
    c = torch.from_numpy(np.ascontiguousarray(centroids))
    distance = np.concatenate(
        [_nearest(block, c)[1][: rows.stop - rows.start].numpy() for rows, block in blocks(points)]
    )
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
    """Lloyd iterations from `start` until the inertia falls by less than `tolerance` of itself.

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
        if len(history) > 1 and history[-2] - history[-1] <= tolerance * history[-2]:
            return Refined(centroids, found.counts, history, True)
        if len(history) > iterations:
            return Refined(centroids, found.counts, history, False)
        updated = centroids.copy()
        filled = found.counts > 0
        updated[filled] = (found.sums.value()[filled] / found.counts[filled, None]).astype(
            np.float32
        )
        empty = np.flatnonzero(~filled)
        if len(empty):
            for cluster, (_, _, point) in zip(
                empty, find_farthest(centroids, len(empty)), strict=True
            ):
                updated[cluster] = point
        centroids = updated
