"""pretrain: a class-conditional DDPM on the labelled images, saved as a diffusers pipeline folder (Ray Train)."""

from __future__ import annotations

from typing import Any

from ssat_ray.config import PretrainConfig
from ssat_ray.data.labelled import LabelledSet
from ssat_ray.diffusion.files import pipeline_files
from ssat_ray.diffusion.noise import build_scheduler
from ssat_ray.models.unet import build_unet
from ssat_ray.stages.base import Session, Stage, StageContext, Task
from ssat_ray.stages.group import run_group
from ssat_ray.store import Job
from ssat_ray.training.ddpm import DDPMTask, train_ddpm


def train(task: Task, session: Session) -> tuple[dict[str, bytes], dict[str, Any]]:
    config = PretrainConfig(**task.job.config["pretrain"])
    labelled = LabelledSet.load(task.inputs["labelled"])
    images, labels = labelled.tensors("labelled")
    unet = build_unet(config, labelled.image_shape, labelled.num_classes, task.seed)
    scheduler = build_scheduler(config)
    ema, result = train_ddpm(
        DDPMTask(unet, scheduler, config, images, labels, task.seed),
        session.world,
        session.states,
        session.due,
        session.progress,
    )
    return pipeline_files(ema.model, scheduler), result


def run(jobs: list[Job], context: StageContext) -> None:
    run_group({"pretrain": train}, jobs, context)


STAGE = Stage("pretrain", 1, run, train)
