"""train: semi-supervised adversarial training of every row and seed in one worker group (Ray Train, DDP)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from ssat_ray.config import ModelConfig, ObjectiveConfig, ThreatConfig, TrainConfig
from ssat_ray.data.labelled import LabelledSet, to_nchw
from ssat_ray.data.pool import Pool
from ssat_ray.models.files import DESCRIPTION, WEIGHTS, classifier_files
from ssat_ray.models.registry import build_classifier
from ssat_ray.stages.base import Stage, StageContext, Task
from ssat_ray.stages.group import run_group
from ssat_ray.stages.parts import record_of
from ssat_ray.store import Job
from ssat_ray.training.classifier import ClassifierTask, ClassifierTrainer, Images
from ssat_ray.training.world import World

BEST = "best-of-recipes"


def train(
    task: Task, world: World, progress: Callable[[int, int, str], None]
) -> tuple[dict[str, bytes], dict[str, Any]]:
    config = task.job.config
    labelled = LabelledSet.load(task.inputs["labelled"])
    unlabelled, read = _pool(task)
    model_config = ModelConfig(**config["model"])
    trainer = ClassifierTrainer(
        ClassifierTask(
            model=build_classifier(
                model_config, labelled.image_shape, labelled.num_classes, task.seed
            ),
            optimiser=TrainConfig(**config["train"]),
            objective=ObjectiveConfig(**config["objective"]),
            threat=ThreatConfig(**config["threat"]),
            labelled=labelled.tensors("labelled"),
            validation=labelled.tensors("validation"),
            unlabelled=unlabelled,
            seed=task.seed,
        ),
        world,
    )
    result = trainer.run(task.folder, progress)
    files = classifier_files(
        trainer.ema.model, model_config, labelled.image_shape, labelled.num_classes
    )
    images = {
        "labelled": len(labelled.splits["labelled"][1]),
        "pool": len(unlabelled[1]) if unlabelled else 0,
    }
    return files, {**result, "images": images, "bytes_read": read}


def _pool(task: Task) -> tuple[Images | None, int]:
    """The pool or selection in memory as uint8 (N, C, H, W) with labels, and the bytes read."""
    if "unlabelled" not in task.inputs:
        return None, 0
    pool = Pool(task.inputs["unlabelled"])
    shard = pool.load()
    return (to_nchw(shard.images), torch.from_numpy(shard.labels)), pool.num_bytes


def keep_best(task: Task) -> None:
    """Publish the checkpoint of the recipe with the highest final validation PGD accuracy."""
    start = time.perf_counter()
    records = {name: record_of(task, name) for name in sorted(task.inputs)}
    best = max(records, key=lambda name: (records[name]["val_pgd"], name))
    source = task.inputs[best]
    written = task.write({name: (source / name).read_bytes() for name in (WEIGHTS, DESCRIPTION)})
    carried = [
        "steps",
        "plateau_step",
        "hit_max_steps",
        "seconds",
        "flops",
        "val_clean",
        "val_pgd",
        "history",
        "images",
        "bytes_read",
        "world_size",
        "backend",
        "worker_pids",
        "peak_pss_bytes",
    ]
    task.publish(
        {
            **{name: records[best][name] for name in carried},
            "recipe": best,
            "validation_by_recipe": {name: record["val_pgd"] for name, record in records.items()},
            "seconds_all_recipes": sum(record["seconds"] for record in records.values()),
            "startup_seconds": time.perf_counter() - start,
            "bytes_written": written,
        }
    )


def run(jobs: list[Job], context: StageContext) -> None:
    trained = [job for job in jobs if job.params["recipe"] != BEST]
    if trained:
        run_group({"train": train}, trained, context)
    for job in jobs:
        if job.params["recipe"] == BEST:
            keep_best(Task.of(job, context.store))


STAGE = Stage("train", 1, run, train)
