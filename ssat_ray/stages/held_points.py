"""The embeddings that one clustering actor holds, as points, and their statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Literal, TypeVar

import numpy as np
import torch

from ssat_ray.selection import em, lloyd
from ssat_ray.selection.exact import Mergeable
from ssat_ray.selection.gmm import GaussianMixture
from ssat_ray.selection.points import Frame
from ssat_ray.selection.regroup import regroup
from ssat_ray.selection.scores import Array, Float32, Int64
from ssat_ray.stages.base import Task
from ssat_ray.stages.held import Held

_GROUP_ROWS = 1 << 15
T = TypeVar("T", bound=Mergeable)


@dataclass(frozen=True)
class Holding:
    """What one actor holds of a job: the embeddings of some parts, as points of a frame.

    Args:
        where: points stay in memory as float32; or the embeddings do as they are stored, and each call
            makes points of them; or each call reads them from their files.
    """

    task: Task
    parts: list[int]
    frame: Frame
    where: Literal["points", "embeddings", "files"]


class HeldPoints:
    """The points of a holding and their statistics.

    Sums of k x p numbers are made once for all points, or once a group of rows, never once a part: a
    pool may have many small ones.
    """

    def __init__(self, holding: Holding) -> None:
        self.frame = holding.frame
        self._held = Held(holding.task.folder, holding.parts)
        self._ids: Int64 | None = None
        self._points: torch.Tensor | None = None
        self._embeddings: Callable[[], Iterable[Array]] = self._held.embeddings
        if holding.where == "points":
            self._points = self._place_all()
        elif holding.where == "embeddings":
            read = [np.array(h) for h in self._held.embeddings()]
            self._embeddings = lambda: read
        self._assigned: lloyd.LloydPoints | None = None

    def _place_all(self) -> torch.Tensor:
        points = np.empty((self._held.num_rows, self.frame.width), np.float32)
        first = 0
        for h in self._held.embeddings():
            stop = first + len(h)
            self.frame.points(h, out=points[first:stop])
            first = stop
        return torch.from_numpy(points)

    def _groups(self) -> Iterator[torch.Tensor]:
        """All points in one tensor if they are kept, otherwise in tensors of bounded size."""
        if self._points is not None:
            yield self._points
            return
        for h in regroup(self._embeddings(), _GROUP_ROWS):
            yield self.frame.points(h)

    def lloyd(self, centroids: Float32) -> lloyd.LloydStatistics:
        if self._points is None:
            grid = self.frame.grid
            return _total(lloyd.lloyd_statistics(x, centroids, grid) for x in self._groups())
        if self._assigned is None:
            self._assigned = lloyd.LloydPoints(self._points, self.frame.grid, len(centroids))
        return self._assigned.statistics(centroids)

    def em(self, mixture: GaussianMixture) -> em.EMStatistics:
        return _total(em.em_statistics(x, mixture, self.frame.grid) for x in self._groups())

    def farthest(self, centroids: Float32, count: int) -> list[tuple[float, int, Float32]]:
        if self._ids is None:
            self._ids = self._held.ids()
        found: list[tuple[float, int, Float32]] = []
        first = 0
        for x in (rows for group in self._groups() for rows in group.split(_GROUP_ROWS)):
            ids = self._ids[first : first + len(x)]
            found = lloyd.best(found + lloyd.farthest(x, ids, centroids, count), count)
            first += len(x)
        return found


def _total(found: Iterable[T]) -> T:
    return reduce(lambda whole, more: whole.merge(more), found)
