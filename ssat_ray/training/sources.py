"""Where a batch's images come from: a set on the device, or a pool too large for it, window by window."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ssat_ray.data.batches import epoch_indices, moved
from ssat_ray.data.prefetch import prefetch
from ssat_ray.data.windows import Window, WindowOrder

Images = tuple[Tensor, Tensor]
"""(N, C, H, W) uint8 images and (N,) int64 labels, -1 = none."""


@dataclass(frozen=True)
class Stream:
    """A pool that is read window by window.

    Args:
        shard_rows: rows of its shards.
        image_shape: (C, H, W).
        read: these windows, each with its images in the order of its shards and their rows.
    """

    shard_rows: Sequence[int]
    image_shape: tuple[int, int, int]
    read: Callable[[Iterator[Window]], Generator[tuple[Window, Images], None, None]]

    def __len__(self) -> int:
        return sum(self.shard_rows)


class Source(Protocol):
    """Images that a batch draws from."""

    lacks_labels: bool
    """Whether an image may have no label."""

    def draw(self, step: int) -> Tensor:
        """Choose the images of step `step`; their labels (n,) int64 on the CPU."""
        ...

    def take(self, at: Tensor) -> Tensor:
        """(b, C, H, W) uint8 on the device: those at positions `at` (b,) of the last draw."""
        ...

    def close(self) -> None:
        """Read no further."""
        ...


class Resident:
    """A set that lies on the device in uint8, shuffled anew in every epoch.

    Args:
        images: the set.
        count: images of a batch.
        seed, stream: decide the order.
        device: where the images lie.
    """

    def __init__(
        self, images: Images, count: int, seed: int, stream: str, device: torch.device
    ) -> None:
        self.images, self.labels = images[0].to(device), images[1]
        self.count, self.seed, self.stream = count, seed, stream
        self.lacks_labels = bool((self.labels < 0).any())

    def draw(self, step: int) -> Tensor:
        self.rows = epoch_indices(len(self.labels), self.count, self.seed, self.stream, step)
        return self.labels[self.rows]

    def take(self, at: Tensor) -> Tensor:
        return self.images[moved(self.rows[at], self.images.device)]

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class _Held:
    """A window in memory: position of its first row, its row at each position, images and labels."""

    window: Window
    order: Tensor
    images: Tensor
    labels: Tensor


class Streamed:
    """A pool of which one window, two where a batch spans them, lies on the device; the next is read meanwhile.

    Steps are drawn in order; a step before the last one starts the stream again.

    Args:
        stream: the pool.
        count: images of a batch.
        window_rows: least images of a window.
        seed: decides the order.
        device: where the windows lie.
    """

    lacks_labels = True  # who knows, before all of it was read

    def __init__(
        self, stream: Stream, count: int, window_rows: int, seed: int, device: torch.device
    ) -> None:
        self.stream, self.count, self.device = stream, count, device
        self.windows = WindowOrder(stream.shard_rows, window_rows, seed)
        self._coming: Generator[_Held, None, None] | None = None
        self._held: list[_Held] = []

    def draw(self, step: int) -> Tensor:
        start, stop = step * self.count, (step + 1) * self.count
        if self._coming is None or (self._held and start < self._held[0].window.start):
            self.close()
            self._coming = prefetch(self._read(start), depth=1, wait=False)
        self._held = [held for held in self._held if held.window.stop > start]
        while not self._held or self._held[-1].window.stop < stop:
            self._held.append(next(self._coming))
        self.positions = torch.arange(start, stop)
        labels = torch.empty(self.count, dtype=torch.int64)
        for held, here, rows in self._parts(self.positions):
            labels[here] = held.labels[rows]
        return labels

    def take(self, at: Tensor) -> Tensor:
        images = torch.empty(
            len(at), *self.stream.image_shape, dtype=torch.uint8, device=self.device
        )
        for held, here, rows in self._parts(self.positions[at]):
            images[moved(here, self.device)] = held.images[moved(rows, self.device)]
        return images

    def close(self) -> None:
        if self._coming is not None:
            self._coming.close()
        self._coming, self._held = None, []

    def _parts(self, positions: Tensor) -> Iterator[tuple[_Held, Tensor, Tensor]]:
        """For each window: which of `positions` lie in it, and the rows of its images they are."""
        for held in self._held:
            inside = (positions >= held.window.start) & (positions < held.window.stop)
            here = inside.nonzero()[:, 0]
            if len(here):
                yield held, here, held.order[positions[here] - held.window.start]

    def _read(self, position: int) -> Generator[_Held, None, None]:
        found = self.stream.read(self.windows.windows(position))
        try:
            for window, (images, labels) in found:
                order = window.order(self.windows.seed)
                yield _Held(window, order, images.to(self.device), labels)
        finally:
            found.close()
