"""score: image -> embedding -> assignment -> score in one actor, writing the score table only (Ray Data)."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ssat_ray.data.pool import Pool, image_hash
from ssat_ray.models.files import load_classifier
from ssat_ray.selection.gmm import GaussianMixture
from ssat_ray.selection.scores import (
    confidence_score,
    easy_score,
    gmm_log_likelihood,
    gmm_margin,
    kmeans_margin,
    posterior_saturation,
    top_confidence,
    two_nearest,
)
from ssat_ray.stages.base import Stage, StageContext, Task
from ssat_ray.stages.cluster import embed, load_clusters
from ssat_ray.stages.parts import Note, PartActor, run_parts
from ssat_ray.store import Job, write_atomic

SCORERS = {
    "pcs": "confidence",
    "lcs-km": "kmeans",
    "easy": "kmeans",
    "lcs-gmm": "gmm",
    "gmm-ll": "gmm",
}
"""Which score table each selection method reads."""


def score_columns(
    h: np.ndarray, logits: np.ndarray, clusters: np.ndarray | GaussianMixture | None
) -> dict[str, np.ndarray]:
    """The columns of the score table: margins by the clusters given, or by confidence without any."""
    if clusters is None:
        return {"score": confidence_score(logits)}
    if isinstance(clusters, GaussianMixture):
        log_joint = clusters.log_joint(h)
        l1, l2, cluster, score = gmm_margin(log_joint)
        likelihood = gmm_log_likelihood(log_joint)
        return {
            "l1": l1,
            "l2": l2,
            "cluster": cluster,
            "score": score,
            "log_likelihood": likelihood,
        }
    d1, d2, cluster = two_nearest(h, clusters)
    return {"d1": d1, "d2": d2, "cluster": cluster, "score": kmeans_margin(d1, d2)}


class ScoreActor(PartActor):
    """Scores one pool shard at a time."""

    unit = "images"

    def process(self, task: Task, part: int) -> Note:
        folder = task.inputs["intermediate"]
        model = self.cached(folder, lambda: load_classifier(folder))
        pool = self.cached(task.inputs["pool"], lambda: Pool(task.inputs["pool"]))
        clusters = None
        if "clusters" in task.inputs:
            clusters = self.cached(
                task.inputs["clusters"], lambda: load_clusters(task.inputs["clusters"])
            )
        shard = pool.read(part)
        h, logits = embed(model, shard.images, task.job.config["layer"])
        columns = score_columns(h, logits, clusters)
        confidence, _ = top_confidence(logits)
        table = pa.table(
            {
                "id": shard.ids,
                "label": shard.labels.astype(np.int16),
                "confidence": confidence,
                **columns,
                "hash": image_hash(shard.images),
            }
        )
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd", compression_level=1)
        write_atomic(task.folder / f"scores-{part:05d}.parquet", buffer.getvalue())
        note: Note = {"rows": len(table), "of_rows": len(pool), "bytes": len(buffer.getvalue())}
        if isinstance(clusters, GaussianMixture):
            note["saturated"] = posterior_saturation(clusters.log_joint(h)) * len(table)
        return note


def _finish(task: Task, notes: list[Note]) -> dict[str, Any]:
    pool = Pool(task.inputs["pool"])
    rows = sum(note["rows"] for note in notes)
    assert rows == len(pool), f"{task.job.label}: scored {rows} of {len(pool)} images"
    record: dict[str, Any] = {
        "bytes_written": sum(n["bytes"] for n in notes),
        "bytes_read": pool.num_bytes,
    }
    if "saturated" in notes[0]:
        record["posterior_saturation"] = sum(n["saturated"] for n in notes) / rows
    return record


def read_scores(folder: Path) -> dict[str, np.ndarray]:
    """The whole score table: column -> array."""
    table = pa.concat_tables([pq.read_table(p) for p in sorted(folder.glob("scores-*.parquet"))])
    return {name: table[name].to_numpy() for name in table.column_names}


def method_score(method: str, columns: dict[str, np.ndarray]) -> np.ndarray:
    """The score a method ranks by, from its table; lower = nearer the boundary."""
    if method == "easy":
        return easy_score(columns["d1"], columns["d2"])
    return columns["log_likelihood"] if method == "gmm-ll" else columns["score"]


def run(jobs: list[Job], context: StageContext) -> None:
    shards = [len(Pool(context.store.folder(job.inputs["pool"])).shards) for job in jobs]
    run_parts(ScoreActor, jobs, shards, _finish, context)


STAGE = Stage("score", 1, run)
