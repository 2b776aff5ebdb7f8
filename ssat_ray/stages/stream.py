"""A pool that does not fit in memory, read for training by Ray Data: shard by shard, in the order of windows."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import numpy as np
import ray
import ray.data
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ssat_ray.data.windows import Window
from ssat_ray.errors import user_error_in
from ssat_ray.stages.shards import Pools
from ssat_ray.training.sources import Images, Stream

READERS = 2
"""Shards that are read at a time, for each rank."""
LEAST_SHARDS = 64
"""Of an execution of Ray Data, whose start takes seconds: a small pool is read for several epochs by one."""


def stream_of(pools: Pools, parts: Sequence[int], retries: int) -> Stream:
    """The images of these shards, to be streamed.

    Args:
        pools: of one resolution.
        parts: numbers of their shards; the stream numbers them anew, in this order.
        retries: further attempts to read a shard.
    """
    image_shape = pools.image_shape

    def read(windows: Iterator[Window]) -> Generator[tuple[Window, Images], None, None]:
        for together in _executions(windows):
            order = [parts[shard] for window in together for shard in window.shards]
            yield from _filled(together, _blocks(pools, order, retries), image_shape)

    return Stream([pools.entry(part)["rows"] for part in parts], image_shape, read)


def _executions(windows: Iterator[Window]) -> Iterator[list[Window]]:
    """The windows, in order, of as many whole epochs as have `LEAST_SHARDS` shards."""
    together: list[Window] = []
    for _, epoch in itertools.groupby(windows, key=lambda window: window.epoch):
        together += epoch
        if sum(len(window.shards) for window in together) >= LEAST_SHARDS:
            yield together
            together = []
    if together:
        yield together


class _Read:
    """What a task of Ray Data does: the images and labels of one shard."""

    def __init__(self, pools: Pools, retries: int) -> None:
        self.pools, self.retries = pools, retries

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        (part,) = batch["part"].tolist()
        shard = self.pools.read_whole(part, self.retries)
        images = np.ascontiguousarray(shard.images.transpose(0, 3, 1, 2))
        return {"images": images, "labels": shard.labels}


def _blocks(pools: Pools, parts: list[int], retries: int) -> Iterator[dict[str, Any]]:
    """The rows of these shards in order, in blocks as Ray Data cuts them.

    Raises:
        UserError: a shard cannot be read.
    """
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    dataset = ray.data.from_items(
        [{"part": part} for part in parts], override_num_blocks=len(parts)
    ).map_batches(
        _Read(pools, retries),
        batch_size=1,
        compute=ray.data.TaskPoolStrategy(size=READERS),
        num_cpus=0,  # the ranks have them all; reading a window takes less than training on it
        scheduling_strategy=here,
    )
    try:
        yield from dataset.iter_batches(batch_size=None, prefetch_batches=1)
    except Exception as error:  # Ray Data wraps whatever happened in its own types
        raise user_error_in(error) or error from error


def _filled(
    windows: list[Window], blocks: Iterator[dict[str, Any]], image_shape: tuple[int, int, int]
) -> Generator[tuple[Window, Images], None, None]:
    """The windows of one execution with their images."""
    images, labels = np.empty((0, *image_shape), np.uint8), np.empty(0, np.int64)
    for window in windows:
        found = torch.empty(window.rows, *image_shape, dtype=torch.uint8)
        numbers, filled = torch.empty(window.rows, dtype=torch.int64), 0
        while filled < window.rows:
            if not len(labels):
                block = next(blocks)
                images, labels = block["images"], block["labels"]
            take = min(len(labels), window.rows - filled)
            found.numpy()[filled : filled + take] = images[:take]
            numbers.numpy()[filled : filled + take] = labels[:take]
            images, labels, filled = images[take:], labels[take:], filled + take
        yield window, (found, numbers)
