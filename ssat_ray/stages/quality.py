"""quality: a row's guided images beside the base model's and real ones, by the guide and by a judge (Ray task).

The judge is another intermediate model, of another seed, with clusters of its own; guidance never saw it.
What fools the guide alone is adversarial noise, and shows in the judge's figures.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import ray
import torch
from safetensors.numpy import save

from ssat_ray.config import EmbedConfig, GenerateConfig
from ssat_ray.data.labelled import LabelledSet
from ssat_ray.data.pool import Pool
from ssat_ray.diffusion.files import load_ddpm
from ssat_ray.diffusion.quality import MOST_IMAGES, QUANTILES, Seen, judged, nearest_distances
from ssat_ray.diffusion.sampling import balanced_labels, initial_noise, sample, step_generators
from ssat_ray.models.embedding import Embedder
from ssat_ray.models.files import load_classifier
from ssat_ray.models.unet import is_conditional
from ssat_ray.runtime import Meter, exact_on_gpu, use_threads
from ssat_ray.selection.clusters import load_clusters
from ssat_ray.stages.base import Stage, StageContext, Task
from ssat_ray.store import Job

QUALITY, PAIRS, SCORES = "quality.json", "pairs.safetensors", "scores.safetensors"
JUDGES = ("guide", "judge")
_PAIRS = 40


@ray.remote(num_cpus=1, max_retries=3)
def _quality(task: Task) -> None:
    use_threads(1)
    exact_on_gpu()
    with Meter() as meter:
        written = task.write(look(task))
    task.publish(
        {
            "seconds": meter.seconds,
            "peak_pss_bytes": meter.peak_pss,
            "bytes_written": written,
        }
    )


def look(task: Task) -> dict[str, bytes]:
    """The artefact's files: the figures, and images of one noise before and after guidance."""
    labelled = LabelledSet.load(task.inputs["labelled"])
    pools = {name: Pool(task.inputs[name]).first(MOST_IMAGES) for name in ("base", "guided")}
    unet, scheduler = load_ddpm(task.inputs["ddpm"])
    asked = {name: pool.labels for name, pool in pools.items()}
    if is_conditional(unet):
        num_classes = Pool(task.inputs["base"]).num_classes
        asked = {name: balanced_labels(pool.ids, num_classes) for name, pool in pools.items()}
    sets = {name: (pool.images, asked[name]) for name, pool in pools.items()}
    splits = [labelled.splits[name] for name in ("validation", "labelled")]
    sets["real"] = (
        np.concatenate([images for images, _ in splits]),
        np.concatenate([labels for _, labels in splits]),
    )
    sets = {n: (images[:MOST_IMAGES], y[:MOST_IMAGES]) for n, (images, y) in sets.items()}
    labels = {name: y for name, (_, y) in sets.items()}
    # what an unconditional model's images are called, if anything, the guide has said itself
    unknown = {} if is_conditional(unet) else {n: np.full_like(asked[n], -1) for n in asked}
    embed = EmbedConfig(**task.job.config["embed"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found: dict[str, Any] = {}
    scores: dict[str, np.ndarray] = {}
    for judge in JUDGES:
        model = load_classifier(task.inputs[judge]).to(device)
        embedder = Embedder(model, embed.layer, embed.precision, device)
        folder = task.inputs.get(f"{judge}_clusters")
        clusters = None if folder is None else load_clusters(folder)
        seen = {name: Seen.by(embedder, clusters, images) for name, (images, _) in sets.items()}
        found[judge] = judged(**seen, labels=labels | (unknown if judge == "guide" else {}))
        scores |= {f"{judge}.{name}": s.score.astype(np.float32) for name, s in seen.items()}
    train = labelled.splits["labelled"][0]
    compared = {
        "base": sets["base"][0],
        "guided": sets["guided"][0],
        "validation": labelled.splits["validation"][0],
    }
    found["nearest_training_image"] = {
        name: {str(q): float(v) for q, v in zip(QUANTILES, _quantiles(images, train), strict=True)}
        for name, images in compared.items()
    }
    after, classes = pools["guided"][:_PAIRS], asked["guided"][:_PAIRS].astype(np.int64)
    config = GenerateConfig(**task.job.config["generate"])
    before = sample(
        unet.to(device),
        scheduler,
        initial_noise(after.ids, labelled.image_shape, task.seed).to(device),
        torch.from_numpy(classes).to(device) if is_conditional(unet) else None,
        config,
        generators=step_generators(after.ids, task.seed, config),
    )
    pairs = {"before": before.permute(0, 2, 3, 1).numpy(), "after": after.images}
    return {
        QUALITY: json.dumps(found, indent=1).encode(),
        SCORES: save(scores),
        PAIRS: save({n: np.ascontiguousarray(a) for n, a in pairs.items()}),
    }


def _quantiles(images: np.ndarray, train: np.ndarray) -> np.ndarray:
    return np.quantile(nearest_distances(images, train), QUANTILES)


def run(jobs: list[Job], context: StageContext) -> None:
    task = _quality.options(num_gpus=context.runtime.gpus_per_actor)
    ray.get([task.remote(Task.of(job, context.store)) for job in jobs])


STAGE = Stage("quality", 4, run)
