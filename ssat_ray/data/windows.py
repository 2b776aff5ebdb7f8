"""In which order a pool that is streamed gives its images: shuffled shards, in windows shuffled within.

The order is a function of the seed and the shards' sizes alone. Every image comes once an epoch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ssat_ray.data.batches import generator


def rows_a_window(mib: float, image_shape: Sequence[int]) -> int:
    """Images of shape (C, H, W), uint8, in so many MiB; one at least."""
    return max(1, int(mib * 2**20) // math.prod(image_shape))


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
        window_rows: most rows of a window, and the rest of its last shard: an epoch is cut into as few
            windows as that allows, of about the same size.
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
        num_windows = -(-self.num_rows // self.window_rows)
        rng = generator(self.seed, "shards", epoch)
        start = done = ended = 0
        shards: list[int] = []
        for shard in torch.randperm(len(self.shard_rows), generator=rng).tolist():
            shards.append(shard)
            done += self.shard_rows[shard]
            if done * num_windows >= (ended + 1) * self.num_rows:
                first = epoch * self.num_rows + start
                yield Window(epoch, first, done - start, tuple(shards))
                start, shards, ended = done, [], done * num_windows // self.num_rows
