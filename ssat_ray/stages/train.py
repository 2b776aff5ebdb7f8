"""train: semi-supervised adversarial training of every row and seed in one worker group (Ray Train, DDP)."""

from __future__ import annotations

import itertools
import time
from typing import Any

import torch

from ssat_ray.config import ObjectiveConfig, TrainConfig
from ssat_ray.data.pool import Pool
from ssat_ray.errors import RunFailed
from ssat_ray.models.files import DESCRIPTION, WEIGHTS
from ssat_ray.stages.base import Session, Stage, StageContext, Task
from ssat_ray.stages.fit import fit_classifier
from ssat_ray.stages.group import DIVERGED, run_group
from ssat_ray.stages.parts import record_of
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
    unlabelled, read = _pool(task, optimiser.window_rows, session.read_retries)
    load_seconds = time.perf_counter() - start
    files, record = fit_classifier(task, session, optimiser, objective, unlabelled)
    record["seconds"] += load_seconds
    return files, {**record, "bytes_read": read}


def _pool(task: Task, window_rows: int, retries: int) -> tuple[Images | Stream | None, int]:
    """The pool or selection in memory as uint8 (N, C, H, W) with labels, or as a stream; and its bytes."""
    folders = [folder for name, folder in task.inputs.items() if name.startswith("unlabelled")]
    if not folders:
        return None, 0
    pools = [Pool(folder) for folder in folders]
    num_bytes = sum(pool.num_bytes for pool in pools)
    if sum(map(len, pools)) > window_rows:
        return stream_of(pools, retries), num_bytes
    images = torch.empty(sum(map(len, pools)), *pools[0].image_shape, dtype=torch.uint8)
    labels, start = torch.empty(len(images), dtype=torch.int64), 0
    for shard in itertools.chain.from_iterable(pools):
        rows = slice(start, start + len(shard.ids))
        images[rows] = torch.from_numpy(shard.images).permute(0, 3, 1, 2)
        labels[rows] = torch.from_numpy(shard.labels)
        start = rows.stop
    return (images, labels), num_bytes


def keep_best(task: Task) -> None:
    """Publish the checkpoint of the recipe with the highest final validation PGD accuracy.

    Raises:
        RunFailed: every recipe diverged.
    """
    start = time.perf_counter()
    tried = {name: record_of(task, name) for name in sorted(task.inputs)}
    diverged = {name: record[DIVERGED] for name, record in tried.items() if DIVERGED in record}
    records = {name: record for name, record in tried.items() if name not in diverged}
    if not records:
        raise RunFailed(f"{task.job.label}: every recipe diverged: {next(iter(diverged.values()))}")
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


STAGE = Stage("train", 2, run, train)
