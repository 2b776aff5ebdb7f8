"""select: the exact balanced choice over the whole score table, written as a pool (Ray tasks)."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from ssat_ray.config import SelectConfig
from ssat_ray.data.pool import MANIFEST, Pool, Shard, manifest, write_shard
from ssat_ray.errors import UserError
from ssat_ray.runtime import Meter, use_threads
from ssat_ray.selection.choose import REASONS, Choice, DegenerateScoreError, choose
from ssat_ray.selection.scores import random_score
from ssat_ray.stages.base import Stage, StageContext, Task
from ssat_ray.stages.score import method_score, read_scores
from ssat_ray.store import Job, write_atomic

TABLE = "selection.parquet"
SHARD_ROWS = 10_000


@ray.remote(num_cpus=1, max_retries=3)
def _select(task: Task) -> None:
    use_threads(1)
    with Meter() as meter:
        record = select(task)
    task.publish({**record, "seconds": meter.seconds, "peak_pss_bytes": meter.peak_pss})


def select(task: Task) -> dict[str, Any]:
    """Choose, write ids with reasons, and write the chosen images as a pool; returns what to record."""
    config, method = SelectConfig(**task.job.config["select"]), task.job.params["method"]
    pool = Pool(task.inputs["pool"])
    if method == "random":
        ids = np.concatenate([shard.ids for shard in pool])
        labels = np.concatenate([shard.labels for shard in pool])
        score = random_score(ids, task.seed)
    else:
        columns = read_scores(task.inputs["score"])
        ids, labels, score = columns["id"], columns["label"], method_score(method, columns)
    choice = choose(
        ids,
        score,
        ratio=config.ratio,
        boundary_fraction=1.0 if method == "random" else config.boundary_fraction,
        seed=task.seed,
        labels=labels,
        per_class=config.per_class,
        method=method,
    )
    if method == "random":  # its lowest scores are no boundary, and its images not the others' rest
        reason = np.full_like(choice.reason, REASONS.index("random"))
        choice = replace(choice, reason=reason, cut=-math.inf)
    return _write(task, pool, choice)


def _write(task: Task, pool: Pool, choice: Choice) -> dict[str, Any]:
    height, width, channels = pool.manifest["shape"]
    chosen = [_rows_in(shard, choice.ids) for shard in pool]
    images = np.concatenate([shard.images for shard in chosen])
    labels = np.concatenate([shard.labels for shard in chosen])
    ids = np.concatenate([shard.ids for shard in chosen])
    assert len(ids) == len(choice.ids), f"{len(choice.ids)} chosen, {len(ids)} found in the pool"
    entries = [
        write_shard(
            task.folder,
            i,
            Shard(ids[a : a + SHARD_ROWS], images[a : a + SHARD_ROWS], labels[a : a + SHARD_ROWS]),
        )
        for i, a in enumerate(range(0, len(ids), SHARD_ROWS))
    ]
    buffer = io.BytesIO()
    reasons = np.array(REASONS)[choice.reason]
    pq.write_table(
        pa.table({"id": choice.ids, "reason": pa.array(reasons).dictionary_encode()}), buffer
    )
    write_atomic(task.folder / TABLE, buffer.getvalue())
    write_atomic(
        task.folder / MANIFEST,
        manifest(entries, (channels, height, width), pool.manifest["num_classes"]),
    )
    return {
        "rows": len(ids),
        "of_rows": len(pool),
        "boundary": int((choice.reason == 0).sum()),
        "cut": choice.cut if math.isfinite(choice.cut) else None,
        "tied_at_cut": choice.num_tied_at_cut,
        "bytes_written": sum(e["bytes"] for e in entries),
        "bytes_read": pool.num_bytes,
    }


def _rows_in(shard: Shard, ids: np.ndarray) -> Shard:
    keep = np.isin(shard.ids, ids, assume_unique=True)
    return Shard(shard.ids[keep], shard.images[keep], shard.labels[keep])


def run(jobs: list[Job], context: StageContext) -> None:
    failures: list[str] = []
    for job in jobs:  # one at a time: each row's seconds are its own
        try:
            ray.get(_select.remote(Task.of(job, context.store)))
        except ray.exceptions.RayTaskError as error:
            if not isinstance(error.cause, DegenerateScoreError | ValueError):
                raise
            failures.append(f"{job.label}: {error.cause}")
    if failures:
        raise UserError(" ".join(failures))


STAGE = Stage("select", 2, run)
