"""checkpoint: take the intermediate model from a file instead of training it (on the driver)."""

from __future__ import annotations

import time
from pathlib import Path

from ssat_ray.adversarial.evaluation import clean_flags
from ssat_ray.config import ModelConfig
from ssat_ray.data.labelled import LabelledSet, unit_float
from ssat_ray.models.files import classifier_files
from ssat_ray.models.public import load_public
from ssat_ray.models.registry import build_classifier
from ssat_ray.stages.base import Stage, StageContext, Task
from ssat_ray.store import Job


def run(jobs: list[Job], context: StageContext) -> None:
    for job in jobs:
        start = time.perf_counter()
        task = Task.of(job, context.store)
        labelled = LabelledSet.load(task.inputs["labelled"])
        config = ModelConfig(**job.config["model"])
        shape, num_classes = labelled.image_shape, labelled.num_classes
        model = build_classifier(config, shape, num_classes, seed=0)
        path = Path(str(job.location))
        taken = load_public(model, path)
        images, labels = labelled.tensors("validation")
        right = clean_flags(model, unit_float(images), labels)
        written = task.write(classifier_files(model, config, shape, num_classes))
        task.publish(
            {
                "seconds": time.perf_counter() - start,
                "weights": taken,
                "bytes_read": path.stat().st_size,
                "bytes_written": written,
                "val_clean": 100 * right.double().mean().item(),
            }
        )


STAGE = Stage("checkpoint", 2, run)
