"""score: image -> embedding -> assignment -> score in one actor, writing the score table only (Ray Data)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ssat_ray.data.shard import Shard, image_hash
from ssat_ray.places import write_atomic
from ssat_ray.selection.clusters import Clusters, mixture_columns, score_columns
from ssat_ray.selection.gmm import GaussianMixture
from ssat_ray.selection.scores import posterior_saturation, top_confidence
from ssat_ray.selection.table import encode, score_file
from ssat_ray.stages.base import Stage, StageContext, Task
from ssat_ray.stages.embed import EmbeddingActor
from ssat_ray.stages.parts import Note, run_parts
from ssat_ray.stages.shards import QUARANTINED, Pools
from ssat_ray.store import Job

SCORERS = {
    "pcs": "confidence",
    "lcs-km": "kmeans",
    "easy": "kmeans",
    "lcs-gmm": "gmm",
    "gmm-ll": "gmm",
    "pcg": "confidence",
    "lcg-km": "kmeans",
    "lcg-gmm": "gmm",
}
"""Which score table each row reads."""


class ScoreActor(EmbeddingActor):
    """Scores one pool shard at a time."""

    def process(self, task: Task, part: int) -> Note:
        pools = self.pools(task)
        shard, note = pools.read(part, self.runtime.read_retries)
        if shard is None:
            return {"rows": 0, "of_rows": pools.num_images, "bytes": 0, **note}
        columns, saturated = score_shard(self.embedder(task), self.clusters(task), shard)
        data = encode(columns)
        write_atomic(task.folder / score_file(part), data)
        note = {"rows": len(shard.ids), "of_rows": pools.num_images, "bytes": len(data)}
        return note if saturated is None else {**note, "saturated": saturated}


def score_shard(
    embedder: Any, clusters: Clusters | None, shard: Shard
) -> tuple[dict[str, np.ndarray], float | None]:
    """The score table's columns of a shard, and of a mixture how many posteriors are saturated.

    Embeddings live for one block only.
    """
    parts: list[dict[str, np.ndarray]] = []
    saturated = 0.0
    for _, h, logits in embedder.blocks(shard.images):
        if isinstance(clusters, GaussianMixture):
            log_joint = clusters.log_joint(h)
            found = mixture_columns(log_joint)
            saturated += posterior_saturation(log_joint) * len(h)
        else:
            found = score_columns(h, logits, clusters)
        confidence, predicted = top_confidence(logits)
        parts.append({"confidence": confidence.astype(np.float32), "predicted": predicted, **found})
    together = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    predicted = together.pop("predicted")
    columns: dict[str, np.ndarray] = {
        "id": shard.ids,
        "label": np.where(shard.labels < 0, predicted, shard.labels).astype(np.int16),
        **together,
        "hash": image_hash(shard.images),
    }
    return columns, saturated if isinstance(clusters, GaussianMixture) else None


def _finish(task: Task, notes: list[Note], context: StageContext) -> dict[str, Any]:
    record = Pools(task).account(task.job.label, notes)
    for part, note in enumerate(notes):
        if QUARANTINED in note:  # scored by a killed run, when the shard could still be read
            (task.folder / score_file(part)).unlink(missing_ok=True)
    record["bytes_written"] = sum(note["bytes"] for note in notes)
    saturated = [note["saturated"] for note in notes if "saturated" in note]
    if saturated:
        record["posterior_saturation"] = sum(saturated) / sum(note["rows"] for note in notes)
    return record


def run(jobs: list[Job], context: StageContext) -> None:
    shards = [len(Pools.of(job, context)) for job in jobs]
    run_parts(ScoreActor, jobs, shards, _finish, context)


STAGE = Stage("score", 3, run)
