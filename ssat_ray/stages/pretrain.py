"""pretrain: a class-conditional DDPM on the labelled images, saved as a diffusers pipeline folder (Ray Train)."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from ssat_ray.config import PretrainConfig
from ssat_ray.data.labelled import LabelledSet
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


def pipeline_files(unet: Any, scheduler: Any) -> dict[str, bytes]:
    """The files of a diffusers pipeline folder: model_index.json, unet/ and scheduler/."""
    import diffusers

    index = {
        "_class_name": "DDPMPipeline",
        "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", type(scheduler).__name__],
        "unet": ["diffusers", type(unet).__name__],
    }
    with tempfile.TemporaryDirectory() as scratch:
        unet.save_pretrained(Path(scratch) / "unet")
        scheduler.save_pretrained(Path(scratch) / "scheduler")
        files = {
            str(p.relative_to(scratch)): p.read_bytes()
            for p in Path(scratch).rglob("*")
            if p.is_file()
        }
    return {**files, "model_index.json": json.dumps(index, indent=1).encode()}


def run(jobs: list[Job], context: StageContext) -> None:
    run_group({"pretrain": train}, jobs, context)


STAGE = Stage("pretrain", 1, run, train)
