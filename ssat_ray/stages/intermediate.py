"""intermediate: the classifier whose latent space is clustered, trained on the labelled set (Ray Train)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ssat_ray.config import IntermediateConfig, ModelConfig, ObjectiveConfig, ThreatConfig
from ssat_ray.data.labelled import LabelledSet
from ssat_ray.models.files import classifier_files
from ssat_ray.models.registry import build_classifier
from ssat_ray.stages.base import Stage, StageContext, Task
from ssat_ray.stages.group import run_group
from ssat_ray.store import Job
from ssat_ray.training.classifier import ClassifierTask, ClassifierTrainer
from ssat_ray.training.world import World


def train(
    task: Task, world: World, progress: Callable[[int, int, str], None]
) -> tuple[dict[str, bytes], dict[str, Any]]:
    config = task.job.config
    labelled = LabelledSet.load(task.inputs["labelled"])
    model_config = ModelConfig(**config["model"])
    trainer = ClassifierTrainer(
        ClassifierTask(
            model=build_classifier(
                model_config, labelled.image_shape, labelled.num_classes, task.seed
            ),
            optimiser=IntermediateConfig(**config["intermediate"]),
            objective=ObjectiveConfig(),
            threat=ThreatConfig(**config["threat"]),
            labelled=labelled.tensors("labelled"),
            validation=labelled.tensors("validation"),
            unlabelled=None,
            seed=task.seed,
        ),
        world,
    )
    result = trainer.run(task.folder, progress)
    files = classifier_files(
        trainer.ema.model, model_config, labelled.image_shape, labelled.num_classes
    )
    return files, result


def run(jobs: list[Job], context: StageContext) -> None:
    run_group({"intermediate": train}, jobs, context)


STAGE = Stage("intermediate", 1, run, train)
