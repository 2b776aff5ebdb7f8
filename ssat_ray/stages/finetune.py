"""finetune: the DDPM, guided towards images near the decision boundary (Ray Train)."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ssat_ray.config import EmbedConfig, FinetuneConfig
from ssat_ray.data.labelled import LabelledSet
from ssat_ray.diffusion.files import load_ddpm, pipeline_files
from ssat_ray.diffusion.guidance import Guide, Regulariser, margin_of
from ssat_ray.models.files import load_classifier
from ssat_ray.selection.clusters import load_clusters
from ssat_ray.selection.table import ScoreTable
from ssat_ray.stages.base import Session, Stage, StageContext, Task
from ssat_ray.stages.group import run_group
from ssat_ray.store import Job
from ssat_ray.training.ddpm import DDPMTask, train_ddpm


def train(task: Task, session: Session) -> tuple[dict[str, bytes], dict[str, Any]]:
    config = FinetuneConfig(**task.job.config["finetune"])
    images, labels = LabelledSet.load(task.inputs["labelled"]).tensors("labelled")
    unet, scheduler = load_ddpm(task.inputs["ddpm"])
    guide = guide_of(task).to(session.world.device)
    base = copy.deepcopy(unet).to(session.world.device) if config.anchor else None
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
        ),
        session.world,
        session.states,
        session.due,
        session.progress,
    )
    return pipeline_files(ema.model, scheduler), {**result, "median_score": guide.scale}


def guide_of(task: Task) -> Guide:
    """What a job is guided by: its classifier and clusters, in units of its base images' median score."""
    scores = median_score(task)
    clusters = task.inputs.get("clusters")
    margin = None if clusters is None else margin_of(load_clusters(clusters))
    classifier = load_classifier(task.inputs["intermediate"]).requires_grad_(False)
    layer = EmbedConfig(**task.job.config["embed"]).layer
    return Guide(task.job.params["guide"], classifier, layer, margin, scores)


def median_score(task: Task) -> float:
    """Of the base images, in the units of what guidance lowers: for `pcg` the highest probability."""
    column = "confidence" if task.job.params["guide"] == "pcg" else "score"
    files = ScoreTable.of_folders([task.inputs["scores"]]).files
    return float(np.median(np.concatenate([pq.read_table(f)[column] for f in files])))


def run(jobs: list[Job], context: StageContext) -> None:
    run_group({"finetune": train}, jobs, context)


STAGE = Stage("finetune", 1, run, train)
