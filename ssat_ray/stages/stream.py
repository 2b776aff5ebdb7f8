"""A pool that does not fit in memory, read for training by Ray Data: shard by shard, in the order of windows."""

from __future__ import annotations

import itertools
import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import numpy as np
import ray.data
import torch

from ssat_ray.data.pool import Pool
from ssat_ray.data.windows import Window
from ssat_ray.training.sources import Images, Stream

READERS = 2
"""Shards that are read at a time, for each rank."""


def stream_of(pools: Sequence[Pool], retries: int) -> Stream:
    """The images of all these pools, to be streamed.

    Args:
        pools: of one resolution; their shards are numbered through.
        retries: further attempts to read a shard.
    """
    shards = [(pool, i) for pool in pools for i in range(len(pool.shards))]
    image_shape = pools[0].image_shape

    def read(windows: Iterator[Window]) -> Generator[tuple[Window, Images], None, None]:
        for _, epoch in itertools.groupby(windows, key=lambda window: window.epoch):
            yield from _epoch(list(epoch), shards, image_shape, retries)

    rows = [pool.shards[i]["rows"] for pool, i in shards]
    return Stream(rows, image_shape, read)


class _Read:
    """What a task of Ray Data does: the images and labels of one shard."""

    def __init__(self, shards: list[tuple[Pool, int]], retries: int) -> None:
        self.shards, self.retries = shards, retries

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        (number,) = batch["shard"].tolist()
        pool, index = self.shards[number]
        for attempt in range(self.retries + 1):
            try:
                shard = pool.read(index)
                break
            except OSError:
                if attempt == self.retries:
                    raise
                time.sleep(0.2 * 2**attempt)
        images = np.ascontiguousarray(shard.images.transpose(0, 3, 1, 2))
        return {"images": images, "labels": shard.labels}


def _epoch(
    windows: list[Window],
    shards: list[tuple[Pool, int]],
    image_shape: tuple[int, int, int],
    retries: int,
) -> Generator[tuple[Window, Images], None, None]:
    """The windows of one epoch with their images."""
    items = [{"shard": shard} for window in windows for shard in window.shards]
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        _Read(shards, retries),
        batch_size=1,
        num_cpus=0,  # the ranks have the CPUs; a reader waits for the disk
        compute=ray.data.TaskPoolStrategy(size=READERS),
    )
    blocks: Iterator[dict[str, Any]] = iter(
        dataset.iter_batches(batch_size=None, prefetch_batches=1)
    )
    images, labels = _next(blocks)
    for window in windows:
        found = torch.empty(window.rows, *image_shape, dtype=torch.uint8)
        numbers, filled = torch.empty(window.rows, dtype=torch.int64), 0
        while filled < window.rows:
            if not len(labels):
                images, labels = _next(blocks)
            take = min(len(labels), window.rows - filled)
            found[filled : filled + take] = torch.from_numpy(images[:take])
            numbers[filled : filled + take] = torch.from_numpy(labels[:take])
            images, labels, filled = images[take:], labels[take:], filled + take
        yield window, (found, numbers)


def _next(blocks: Iterator[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    block = next(blocks)
    return block["images"], block["labels"]
