"""cluster: embed the pool, or a seeded part of it (Ray Data actors), then fit and refine (refine.py)."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import ray

from ssat_ray.config import ClusterConfig
from ssat_ray.errors import UserError
from ssat_ray.selection.clusters import cluster_files
from ssat_ray.selection.gmm import GaussianMixture
from ssat_ray.selection.scores import random_score
from ssat_ray.stages.base import Stage, StageContext, Task
from ssat_ray.stages.cluster_actors import ClusterActors
from ssat_ray.stages.embed import EmbeddingActor
from ssat_ray.stages.held import hold
from ssat_ray.stages.parts import Note, record_of, run_parts
from ssat_ray.stages.refine import refine
from ssat_ray.stages.shards import Pools
from ssat_ray.store import Job

_SAMPLE_STREAM = 0x53414D504C45


class KeepActor(EmbeddingActor):
    """Embeds those images of one shard that take part in the refinement, and keeps the embeddings."""

    def process(self, task: Task, part: int) -> Note:
        pools = self.pools(task)
        shard, note = pools.read(part, self.runtime.read_retries)
        if shard is None:
            return {"rows": 0, "of_rows": pools.num_images, "kept": 0, **note}
        config = ClusterConfig(**task.job.config["cluster"])
        share = (config.refine_rows or pools.num_images) / pools.num_images
        order = random_score(shard.ids, task.seed ^ _SAMPLE_STREAM)
        rows = np.flatnonzero(order < share)
        h, _ = self.embedder(task)(shard.images[rows])
        with np.errstate(over="ignore"):  # told below
            stored = h.astype(config.storage, copy=False)
        check_finite(stored, shard.ids[rows], pools.path(part), config.storage)
        hold(task.folder, part, stored, shard.ids[rows], order[rows])
        return {"rows": len(shard.ids), "of_rows": pools.num_images, "kept": len(rows)}


def check_finite(h: np.ndarray, ids: np.ndarray, path: str, storage: str) -> None:
    """UserError that names the first image whose embedding (n, d) is not finite as it is stored."""
    bad = np.flatnonzero(~np.isfinite(h).all(axis=1))
    if len(bad):
        mend = (
            "float16 holds numbers up to 65,504: set cluster.storage=float32, or mend the image"
            if storage == "float16"
            else "mend or remove the image, or the intermediate model's weights"
        )
        raise UserError(
            f"{path}: the embedding of image {ids[bad[0]]} is not finite ({len(bad)} such images in this shard); "
            f"{mend}."
        )


def _finish(
    actors: ClusterActors, task: Task, notes: list[Note], context: StageContext
) -> dict[str, Any]:
    read = Pools(task).account(task.job.label, notes)
    kept = sum(note["kept"] for note in notes)
    k = task.job.config["cluster"]["k"] or record_of(task, "labelled")["num_classes"]
    if kept < k:
        raise UserError(
            f"{task.job.label}: {kept} embeddings for {k} clusters; raise cluster.refine_rows or "
            "lower cluster.k."
        )
    try:
        parts = [part for part, note in enumerate(notes) if note["kept"]]
        resident_bytes = context.runtime.resident_mib * 2**20
        clusters, about, record = refine(task, parts, k, resident_bytes, actors)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ValueError):
            raise UserError(f"{task.job.label}: {error.cause}") from error
        if isinstance(error.cause, OverflowError):
            raise UserError(
                f"{task.job.label}: embeddings lie more than a thousand times as far from the mean as "
                "any of the sample. Find what is wrong with these images, or raise cluster.sample_rows."
            ) from error
        raise
    about = {
        "method": task.job.params["method"],
        "k": k,
        "layer": task.job.config["embed"]["layer"],
        "rows": kept,
        **about,
    }
    if isinstance(clusters, GaussianMixture):
        tensors: dict[str, Any] = dict(clusters.to_tensors())
    else:
        tensors = {"centroids": clusters, "counts": np.array(about["counts"])}
    written = task.write(cluster_files(tensors, about))
    return {
        **record,
        **read,
        "bytes_written": written,
    }


def run(jobs: list[Job], context: StageContext) -> None:
    shards = [len(Pools.of(job, context)) for job in jobs]
    with ClusterActors(context.runtime.actors) as actors:
        run_parts(KeepActor, jobs, shards, partial(_finish, actors), context)


STAGE = Stage("cluster", 4, run)
