"""cluster: embed the pool (Ray Data actors), then fit FAISS k-means or a Gaussian mixture in an actor."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from safetensors.numpy import load_file, save

from ssat_ray.config import ClusterConfig
from ssat_ray.data.labelled import to_nchw, unit_float
from ssat_ray.data.pool import Pool
from ssat_ray.errors import UserError
from ssat_ray.models.files import load_classifier
from ssat_ray.runtime import Meter, use_threads
from ssat_ray.selection.gmm import GaussianMixture, fit_gmm
from ssat_ray.selection.kmeans import fit_kmeans
from ssat_ray.stages.base import Stage, StageContext, Task
from ssat_ray.stages.parts import NOTES, Note, PartActor, record_of, run_parts
from ssat_ray.store import Job, write_atomic

WEIGHTS, DESCRIPTION = "clusters.safetensors", "clusters.json"
EMBED_BATCH = 1000


@torch.inference_mode()
def embed(model: Any, images: np.ndarray, layer: str) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (N, D) and logits (N, K), float32, of (N, H, W, C) uint8 images."""
    parts = []
    for start in range(0, len(images), EMBED_BATCH):
        x = unit_float(to_nchw(images[start : start + EMBED_BATCH]))
        parts.append(
            model.embed_with_logits(x.contiguous(memory_format=torch.channels_last), layer)
        )
    embeddings, logits = (torch.cat(p).float().numpy() for p in zip(*parts, strict=True))
    return embeddings, logits


class EmbedActor(PartActor):
    """Embeds one pool shard at a time."""

    unit = "images"

    def process(self, task: Task, part: int) -> Note:
        folder = task.inputs["intermediate"]
        model = self.cached(folder, lambda: load_classifier(folder))
        pool = self.cached(task.inputs["pool"], lambda: Pool(task.inputs["pool"]))
        shard = pool.read(part)
        embeddings, _ = embed(model, shard.images, task.job.config["cluster"]["layer"])
        buffer = io.BytesIO()
        np.save(buffer, embeddings, allow_pickle=False)
        write_atomic(_embedding_file(task.folder, part), buffer.getvalue())
        return {"rows": len(embeddings), "of_rows": len(pool)}


def _embedding_file(folder: Path, part: int) -> Path:
    """Beside the notes, so that both go when the job has been published."""
    return folder / NOTES / f"embeddings-{part:05d}.npy"


@ray.remote(num_cpus=1)
class ClusterActor:
    """Fits the clusters of one job on all its embeddings."""

    def fit(self, task: Task, num_parts: int, k: int) -> dict[str, Any]:
        use_threads(1)
        import faiss

        faiss.omp_set_num_threads(1)
        config = ClusterConfig(**task.job.config["cluster"])
        with Meter() as meter:
            h = np.concatenate([np.load(_embedding_file(task.folder, p)) for p in range(num_parts)])
            if task.job.params["method"] == "kmeans":
                tensors, about = _kmeans(h, k, config, task.seed)
            else:
                tensors, about = _mixture(h, k, config, task.seed)
        write_atomic(task.folder / WEIGHTS, save(tensors))
        write_atomic(task.folder / DESCRIPTION, json.dumps(about, indent=1))
        return {"fit_seconds": meter.seconds, "fit_peak_pss_bytes": meter.peak_pss}


def _kmeans(
    h: np.ndarray, k: int, config: ClusterConfig, seed: int
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    fit = fit_kmeans(h, k, restarts=config.restarts, iterations=config.iterations, seed=seed)
    return {"centroids": fit.centroids, "counts": fit.counts}, {
        "method": "kmeans",
        "k": k,
        "layer": config.layer,
        "rows": len(h),
        "inertia": fit.inertia,
        "inertia_per_iteration": list(fit.inertia_per_iteration),
        "imbalance": fit.imbalance,
    }


def _mixture(
    h: np.ndarray, k: int, config: ClusterConfig, seed: int
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    fit = fit_gmm(h, k, covariance=config.covariance, pca_dims=config.pca_dims, seed=seed)
    about = {"method": "gmm", "k": k, "layer": config.layer, "rows": len(h), **fit.metadata()}
    return dict(fit.to_tensors()), about


def load_clusters(folder: Path) -> np.ndarray | GaussianMixture:
    """Centroids (k, d) float32, or the mixture."""
    tensors, about = load_file(folder / WEIGHTS), json.loads((folder / DESCRIPTION).read_text())
    if about["method"] == "kmeans":
        return tensors["centroids"]
    return GaussianMixture.from_tensors(tensors, about)


def _finish(task: Task, notes: list[Note]) -> dict[str, Any]:
    start = time.perf_counter()
    k = task.job.config["cluster"]["k"] or record_of(task, "labelled")["num_classes"]
    actor = ClusterActor.remote()  # type: ignore[attr-defined]
    try:
        fitted: dict[str, Any] = ray.get(actor.fit.remote(task, len(notes), k))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ValueError):
            raise UserError(f"{task.job.label}: {error.cause}") from error
        raise
    finally:
        ray.kill(actor)
    return {
        **fitted,
        "startup_seconds": time.perf_counter() - start - fitted["fit_seconds"],
        "bytes_written": (task.folder / WEIGHTS).stat().st_size,
        "bytes_read": Pool(task.inputs["pool"]).num_bytes,
    }


def run(jobs: list[Job], context: StageContext) -> None:
    shards = [len(Pool(context.store.folder(job.inputs["pool"])).shards) for job in jobs]
    run_parts(EmbedActor, jobs, shards, _finish, context)


STAGE = Stage("cluster", 1, run)
