"""What the benches of k-means and of the mixture share: the pipeline's actors, and threads."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ssat_ray.config import ClusterConfig, RuntimeConfig
from ssat_ray.runtime import ray_session
from ssat_ray.selection.points import Frame
from ssat_ray.selection.scores import Float32
from ssat_ray.stages.base import Task
from ssat_ray.stages.cluster_actors import ClusterActors, total
from ssat_ray.stages.held import hold
from ssat_ray.store import Job, Store

Ask = Callable[..., Any]
"""(method of `HeldPoints`, its arguments) -> the total over all actors."""
_PARTS = 4
"""Files of embeddings for each actor."""


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch and every BLAS."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    before = torch.get_num_threads()
    with threadpool_limits(1):
        torch.set_num_threads(1)
        yield
    torch.set_num_threads(before)


@contextmanager
def actors_holding(h: Float32, frame: Frame, count: int) -> Iterator[Callable[[], Ask]]:
    """`count` clustering actors in a Ray session of this machine, each with its share of `h` (n, p).

    Yields:
        Makes all of them read their points anew, as if no iteration had been; returns how to ask them.
    """
    config = ClusterConfig().model_dump(mode="json")
    with tempfile.TemporaryDirectory(prefix="ssat-bench-") as root:
        task = Task.of(Job("cluster", 0, {}, {"cluster": config}), Store(root))
        parts = list(range(_PARTS * count))
        for part, rows in zip(parts, np.array_split(np.arange(len(h)), len(parts)), strict=True):
            hold(task.folder, part, h[rows], rows, np.zeros(len(rows)))
        runtime = RuntimeConfig(num_cpus=count, train_workers=1, actors=count)
        with ray_session(runtime), ClusterActors(count) as actors:
            actors.wait()
            holdings = actors.share(task, parts, frame, most_bytes=4 * frame.width * len(h))

            def fresh() -> Ask:
                actors.let_go()
                actors.ask(holdings, "farthest", np.zeros((1, frame.width), np.float32), 1)
                return lambda method, *args: total(actors.ask(holdings, method, *args))

            yield fresh
