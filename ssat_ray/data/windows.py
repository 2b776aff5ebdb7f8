"""In which order a pool that is streamed gives its images: shuffled shards, in windows shuffled within.

The order is a function of the seed and the shards' sizes alone. Every image comes once an epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ssat_ray.data.batches import generator


@dataclass(frozen=True)
class Window:
    """Consecutive rows of the endless stream, which lie in some whole shards.

    Args:
        epoch: how many times all images came before.
        start, rows: position of the first row in the stream, and how many there are.
        shards: numbers of the shards, in the order in which their rows are numbered.
    """

    epoch: int
    start: int
    rows: int
    shards: tuple[int, ...]

    @property
    def stop(self) -> int:
        return self.start + self.rows

    def order(self, seed: int) -> Tensor:
        """(rows,) int64: which row of the window's shards stands at each position."""
        return torch.randperm(self.rows, generator=generator(seed, "window", self.start))


@dataclass(frozen=True)
class WindowOrder:
    """The windows of a pool.

    Args:
        shard_rows: rows of each shard.
        window_rows: a window takes shards until it has as many; an epoch's last may have fewer.
        seed: decides the order of the shards in every epoch, and of the rows in every window.
    """

    shard_rows: Sequence[int]
    window_rows: int
    seed: int

    @property
    def num_rows(self) -> int:
        """Of an epoch."""
        return sum(self.shard_rows)

    def windows(self, position: int) -> Iterator[Window]:
        """The endless stream's windows from the one that has the row at `position` on."""
        epoch = position // self.num_rows
        while True:
            yield from (window for window in self._epoch(epoch) if window.stop > position)
            epoch += 1

    def _epoch(self, epoch: int) -> Iterator[Window]:
        start, rows, shards = epoch * self.num_rows, 0, []
        count = len(self.shard_rows)
        order = torch.randperm(count, generator=generator(self.seed, "shards", epoch)).tolist()
        for shard in order:
            shards.append(shard)
            rows += self.shard_rows[shard]
            if rows >= self.window_rows or len(shards) == count:
                yield Window(epoch, start, rows, tuple(shards))
                start, rows, count, shards = start + rows, 0, count - len(shards), []
