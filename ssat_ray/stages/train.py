"""train: semi-supervised adversarial training of every row and seed in one worker group (Ray Train, DDP)."""

from __future__ import annotations

import itertools
import time
from typing import Any

import torch

from ssat_ray.config import ObjectiveConfig, TrainConfig
from ssat_ray.data.windows import WindowOrder, rows_a_window
from ssat_ray.errors import Diverged
from ssat_ray.models.files import DESCRIPTION, WEIGHTS
from ssat_ray.places import write_atomic
from ssat_ray.stages.base import Session, Stage, StageContext, Task
from ssat_ray.stages.fit import fit_classifier
from ssat_ray.stages.group import DIVERGED, FAILED, run_group
from ssat_ray.stages.parts import record_of
from ssat_ray.stages.shards import QUARANTINED, Pools
from ssat_ray.stages.stream import stream_of
from ssat_ray.store import Job
from ssat_ray.training.sources import Images, Stream

BEST = "best-of-recipes"
CARRIED = (
    "steps",
    "plateau_step",
    "hit_max_steps",
    "seconds",
    "flops",
    "kept_step",
    "val_clean",
    "val_pgd",
    "history",
    "images",
    "bytes_read",
    "world_size",
    "backend",
    "worker_pids",
    "peak_pss_bytes",
    "baseline_pss_bytes",
)
"""What the record of the kept recipe says of its own training."""


def train(task: Task, session: Session) -> tuple[dict[str, bytes], dict[str, Any]]:
    config = task.job.config
    start = time.perf_counter()
    optimiser, objective = TrainConfig(**config["train"]), ObjectiveConfig(**config["objective"])
    unlabelled = _Unlabelled(task, optimiser, session.read_retries)
    images = unlabelled.images()
    load_seconds = time.perf_counter() - start
    files, record = fit_classifier(task, session, optimiser, objective, images)
    record["seconds"] += load_seconds
    return files, {**record, **unlabelled.record(record["steps"])}


class _Unlabelled:
    """The pool or selection of a job.

    Raises:
        UserError: a shard cannot be read, and is not to be left out.
    """

    def __init__(self, task: Task, config: TrainConfig, retries: int) -> None:
        self.config, self.seed, self.retries = config, task.seed, retries
        self.pools = Pools(task, "unlabelled")
        self.parts, self.left_out = self.pools.good(retries)
        self.shard_rows = [self.pools.entry(part)["rows"] for part in self.parts]

    @property
    def window_rows(self) -> int:
        return rows_a_window(self.config.window_mib, self.pools.image_shape)

    @property
    def is_streamed(self) -> bool:
        return bool(self.parts) and sum(self.shard_rows) > self.window_rows

    def images(self) -> Images | Stream | None:
        """In memory as uint8 (N, C, H, W) with labels, or as a stream; None without a pool."""
        if not self.parts:
            return None
        if self.is_streamed:
            return stream_of(self.pools, self.parts, self.retries)
        images = torch.empty(sum(self.shard_rows), *self.pools.image_shape, dtype=torch.uint8)
        labels, start = torch.empty(len(images), dtype=torch.int64), 0
        for part in self.parts:
            shard = self.pools.read_whole(part, self.retries)
            rows = slice(start, start + len(shard.ids))
            images[rows] = torch.from_numpy(shard.images).permute(0, 3, 1, 2)
            labels[rows] = torch.from_numpy(shard.labels)
            start = rows.stop
        return images, labels

    def record(self, steps: int) -> dict[str, Any]:
        """Bytes that a worker reads of the pool's files in so many steps, and the shards left out, if any."""
        parts = self.parts
        if self.is_streamed:
            order = WindowOrder(self.shard_rows, self.window_rows, self.seed)
            stop = steps * self.config.pool_rows
            used = itertools.takewhile(lambda window: window.start < stop, order.windows(0))
            parts = [self.parts[shard] for window in used for shard in window.shards]
        read = sum(self.pools.entry(part)["bytes"] for part in parts)
        if self.pools.on_bad_shard == "quarantine":  # to see which are bad
            read += self.pools.num_bytes
        return {"bytes_read": read, **({QUARANTINED: self.left_out} if self.left_out else {})}


def keep_best(task: Task) -> None:
    """Publish the checkpoint of the recipe with the highest final validation PGD accuracy.

    Raises:
        Diverged: every recipe did.
    """
    start = time.perf_counter()
    tried = {name: record_of(task, name) for name in sorted(task.inputs)}
    diverged = {name: record[DIVERGED] for name, record in tried.items() if DIVERGED in record}
    records = {name: record for name, record in tried.items() if name not in diverged}
    if not records:
        cause = f"every recipe diverged: {next(iter(diverged.values()))}"
        write_atomic(task.folder / FAILED, cause)
        raise Diverged(f"{task.job.label}: {cause}")
    best = max(records, key=lambda name: (records[name]["val_pgd"], name))
    source = task.inputs[best]
    written = task.write({name: (source / name).read_bytes() for name in (WEIGHTS, DESCRIPTION)})
    task.publish(
        {
            **{name: records[best][name] for name in CARRIED},
            "recipe": best,
            "validation_by_recipe": {name: record["val_pgd"] for name, record in records.items()},
            "diverged_recipes": diverged,
            "seconds_all_recipes": sum(record["seconds"] for record in tried.values()),
            "startup_seconds": time.perf_counter() - start,
            "bytes_written": written,
        }
    )


def run(jobs: list[Job], context: StageContext) -> None:
    trained = [job for job in jobs if job.params["recipe"] != BEST]
    if trained:
        run_group({"train": train}, trained, context)
    for job in jobs:
        if job.params["recipe"] == BEST:
            keep_best(Task.of(job, context.store))


STAGE = Stage("train", 3, run, train)
