"""What `intermediate` and `train` share: one classifier, from a job's settings to its files."""

from __future__ import annotations

import contextlib
from typing import Any

from ssat_ray.config import (
    IntermediateConfig,
    ModelConfig,
    ObjectiveConfig,
    ThreatConfig,
    TrainConfig,
)
from ssat_ray.data.labelled import LabelledSet
from ssat_ray.models.files import classifier_files
from ssat_ray.models.registry import build_classifier
from ssat_ray.stages.base import Session, Task
from ssat_ray.training.classifier import ClassifierTask, ClassifierTrainer
from ssat_ray.training.sources import Images, Stream


def fit_classifier(
    task: Task,
    session: Session,
    optimiser: IntermediateConfig | TrainConfig,
    objective: ObjectiveConfig,
    unlabelled: Images | Stream | None = None,
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Train on the job's labelled set and, if given, the pool; the averaged model's files and the record."""
    labelled = LabelledSet.load(task.inputs["labelled"])
    model_config = ModelConfig(**task.job.config["model"])
    shape, num_classes = labelled.image_shape, labelled.num_classes
    trainer = ClassifierTrainer(
        ClassifierTask(
            model=build_classifier(model_config, shape, num_classes, task.seed),
            optimiser=optimiser,
            objective=objective,
            threat=ThreatConfig(**task.job.config["threat"]),
            labelled=labelled.tensors("labelled"),
            validation=labelled.tensors("validation"),
            unlabelled=unlabelled,
            seed=task.seed,
        ),
        session.world,
        session.engine,
    )
    with contextlib.closing(trainer.feed):
        result = trainer.run(session.states, session.due, session.progress, session.pause)
    pool = unlabelled[1] if isinstance(unlabelled, tuple) else unlabelled or ()
    images = {"labelled": len(labelled.splits["labelled"][1]), "pool": len(pool)}
    files = classifier_files(trainer.ema.model, model_config, shape, num_classes)
    return files, {**result, "images": images}
