"""intermediate: the classifier whose latent space is clustered, trained on the labelled set (Ray Train)."""

from __future__ import annotations

from typing import Any

from ssat_ray.config import IntermediateConfig, ObjectiveConfig
from ssat_ray.stages.base import Session, Stage, StageContext, Task
from ssat_ray.stages.fit import fit_classifier
from ssat_ray.stages.group import run_group
from ssat_ray.store import Job


def train(task: Task, session: Session) -> tuple[dict[str, bytes], dict[str, Any]]:
    optimiser = IntermediateConfig(**task.job.config["intermediate"])
    return fit_classifier(task, session, optimiser, ObjectiveConfig())


def run(jobs: list[Job], context: StageContext) -> None:
    run_group({"intermediate": train}, jobs, context)


STAGE = Stage("intermediate", 2, run, train)
