"""finetune: the DDPM, guided towards images near the decision boundary (Ray Train)."""

from __future__ import annotations

import copy
import math
import time
from typing import Any

import numpy as np
import torch

from ssat_ray.config import EmbedConfig, FinetuneConfig
from ssat_ray.data.labelled import LabelledSet
from ssat_ray.data.pool import Pool
from ssat_ray.diffusion.files import load_ddpm, pipeline_files
from ssat_ray.diffusion.guidance import (
    CentroidMargin,
    ClassMargin,
    Guide,
    MixtureMargin,
    Regulariser,
    margin_of,
)
from ssat_ray.diffusion.quality import MOST_IMAGES
from ssat_ray.diffusion.sampling import import_samplers
from ssat_ray.errors import UserError
from ssat_ray.models.embedding import Embedder
from ssat_ray.models.files import load_classifier
from ssat_ray.selection.clusters import load_clusters
from ssat_ray.selection.kmeans import fit_kmeans
from ssat_ray.selection.table import ScoreTable
from ssat_ray.stages.base import Session, Stage, StageContext, Task
from ssat_ray.stages.group import run_group
from ssat_ray.store import Job
from ssat_ray.training.ddpm import DDPMTask, train_ddpm

FIRST_DRAW = 2**31
"""No pretraining comes so far, so no image is seen with the noise that the base model was trained on."""


def train(task: Task, session: Session) -> tuple[dict[str, bytes], dict[str, Any]]:
    import_samplers()
    config, begun = FinetuneConfig(**task.job.config["finetune"]), time.perf_counter()
    images, labels = LabelledSet.load(task.inputs["labelled"]).tensors("labelled")
    unet, scheduler = load_ddpm(task.inputs["ddpm"])
    guide = guide_of(task).to(session.world.device)
    base = copy.deepcopy(unet).to(session.world.device) if config.anchor else None
    preparing = time.perf_counter() - begun
    ema, result = train_ddpm(
        DDPMTask(
            unet.requires_grad_(True),
            scheduler,
            config,
            images,
            labels,
            task.seed,
            "finetune",
            Regulariser(guide, base, config),
            FIRST_DRAW,
        ),
        session.world,
        session.states,
        session.due,
        session.progress,
    )
    result |= {"seconds": preparing + result["seconds"], "median_score": guide.scale}
    return pipeline_files(ema.model, scheduler), result


def guide_of(task: Task) -> Guide:
    """What a job is guided by: its classifier and clusters, in units of its base images' median score."""
    kind, clusters = task.job.params["guide"], task.inputs.get("clusters")
    classifier = load_classifier(task.inputs["intermediate"]).requires_grad_(False)
    layer = EmbedConfig(**task.job.config["embed"]).layer
    margin: CentroidMargin | ClassMargin | MixtureMargin | None
    if "base" in task.inputs:
        margin, scale = class_margin(task, classifier)
    else:
        margin = None if clusters is None else margin_of(load_clusters(clusters))
        scale = median_score(task)
    if not 0 < scale < math.inf:
        raise UserError(
            f"{kind}: the median score of the base images is {scale:g}, which cannot be the unit of the "
            "guidance: the classifier or its clusters tell no images apart. Train `intermediate` longer, or "
            "change cluster.k."
        )
    return Guide(kind, classifier, layer, margin, scale)


def class_margin(task: Task, classifier: Any) -> tuple[ClassMargin, float]:
    """Of k-means on each class's logits of the first base images; and their median margin."""
    images = Pool(task.inputs["base"]).first(MOST_IMAGES)
    _, logits = Embedder(classifier, "logits")(images.images)
    classes = np.where(images.labels < 0, logits.argmax(axis=1), images.labels).astype(np.int64)
    k, found = FinetuneConfig(**task.job.config["finetune"]).k_per_class, []
    for c in range(logits.shape[1]):
        rows = logits[classes == c]
        if len(rows) < k:
            raise UserError(
                f"finetune.k_per_class={k}: class {c} has {len(rows)} of the {len(logits)} base images; "
                "lower it, raise generate.num_images, or set finetune.centroids=global."
            )
        found.append(fit_kmeans(rows, k, seed=task.seed).centroids)
    margin = ClassMargin(torch.from_numpy(np.stack(found)))
    return margin, float(np.median(margin(torch.from_numpy(logits), torch.from_numpy(classes))))


def median_score(task: Task) -> float:
    """Of the base images, in the units of what guidance lowers: for `pcg` the highest probability."""
    column = "confidence" if task.job.params["guide"] == "pcg" else "score"
    chunks = ScoreTable.of_folders([task.inputs["scores"]]).read([column])
    return float(np.median(np.concatenate([chunk[column] for chunk in chunks])))


def run(jobs: list[Job], context: StageContext) -> None:
    run_group({"finetune": train}, jobs, context)


STAGE = Stage("finetune", 3, run, train)
