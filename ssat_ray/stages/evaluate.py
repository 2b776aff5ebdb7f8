"""evaluate: one attack on one classifier over the whole test set, a queue of batches over actors (Ray Data)."""

from __future__ import annotations

import io
from collections import Counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ssat_ray.adversarial.autoattack import Attacked, apgd_ce_flags, autoattack_flags
from ssat_ray.adversarial.evaluation import class_accuracies, clean_flags, pgd_flags, worst_class
from ssat_ray.board import board
from ssat_ray.config import RuntimeConfig
from ssat_ray.data.labelled import LabelledSet, unit_float
from ssat_ray.models.files import load_classifier
from ssat_ray.places import Place, local_copy, write_atomic
from ssat_ray.runtime import exact_on_gpu
from ssat_ray.stages.base import Stage, StageContext, Task
from ssat_ray.stages.parts import Note, PartActor, record_of, run_parts
from ssat_ray.store import Job, Store

FLAGS = "flags.npy"
SQUARE_SHARE = 0.002
"""More images than this broken by Square alone: pyautoattack's own limit (`check_square_sr`)."""
AUTOATTACK_COST = 2 * 100 * (1 + 9 + 9) + 5000
"""Forward and backward passes: 100 steps of APGD-CE and, for 9 targets each, APGD-T and FAB-T; Square."""


class AttackActor(PartActor):
    """Attacks one batch of test images at a time, in float32, on a GPU where it has one."""

    unit = "images"
    on_gpu = True
    queued = 1

    def __init__(self, tasks: list[Task], num_parts: list[int], runtime: RuntimeConfig) -> None:
        super().__init__(tasks, num_parts, runtime)
        exact_on_gpu()

    @classmethod
    def costs(cls, task: Task, parts: list[int]) -> list[float]:
        """Passes through the classifier if every image held out to the end."""
        config = task.job.config
        match task.job.params["attack"]:
            case "autoattack":
                passes = AUTOATTACK_COST
            case "clean":
                passes = 1
            case _:
                passes = 2 * config["num_steps"] * config.get("restarts", 1)
        images, size = record_of(task, "labelled")["rows"]["test"], config["batch_size"]
        return [float(passes * min(images - part * size, size)) for part in parts]

    def classifier(self, task: Task) -> nn.Module:
        folder = task.inputs["classifier"]
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model: nn.Module = self.cached(folder, lambda: load_classifier(folder).to(device))
        return model

    def batch(self, task: Task, part: int) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) in [0, 1], channels-last, and labels (B,) of one part."""
        folder, size = task.inputs["labelled"], task.job.config["batch_size"]
        labelled = self.cached(folder, lambda: LabelledSet.load(folder))
        images, labels = labelled.tensors("test")
        rows = slice(part * size, (part + 1) * size)
        x = unit_float(images[rows]).contiguous(memory_format=torch.channels_last)
        return x, labels[rows]

    def process(self, task: Task, part: int) -> Note:
        config, (x, y) = task.job.config, self.batch(task, part)
        model, first_id = self.classifier(task), part * config["batch_size"]
        found = attack_batch(task.job.params["attack"], model, x, y, config, first_id)
        return {
            "rows": len(y),
            "of_rows": record_of(task, "labelled")["rows"]["test"],
            "name": found.name,
            "correct": found.flags.int().tolist(),
            "labels": y.tolist(),
            "signs": found.signs,
            "by_square": found.by_square,
        }


def attack_batch(
    attack: str, model: nn.Module, x: Tensor, y: Tensor, config: dict[str, Any], first_id: int
) -> Attacked:
    """One attack on one batch, which is also the batch that the attack sees.

    Args:
        attack: `clean`, `pgd`, `apgd-ce` or `autoattack`.
        x, y: images (B, C, H, W) in [0, 1] and labels (B,).
        config: the job's settings (docs/evaluation.md).
        first_id: number of the batch's first image in the test set.
    """
    if attack == "clean":
        return Attacked(clean_flags(model, x, y, len(y)), "clean")
    seed, batch_size = config["seed"], len(y)
    eps, norm = config["eps"], config["norm"]
    if attack == "autoattack":
        return autoattack_flags(model, x, y, eps=eps, norm=norm, seed=seed, batch_size=batch_size)
    steps = config["num_steps"]
    if attack == "apgd-ce":
        return apgd_ce_flags(
            model, x, y, eps=eps, norm=norm, num_steps=steps, seed=seed, batch_size=batch_size
        )
    assert attack == "pgd", f"no attack is called {attack}"
    restarts = config["restarts"]
    flags = pgd_flags(
        model,
        x,
        y,
        eps=eps,
        norm=norm,
        step_size=config["step_size"],
        num_steps=steps,
        restarts=restarts,
        seed=seed,
        first_id=first_id,
        batch_size=batch_size,
    )
    return Attacked(flags, f"PGD-{steps}" + (f" ({restarts} restarts)" if restarts > 1 else ""))


def finish(task: Task, notes: list[Note], context: StageContext) -> dict[str, Any]:
    """Write the flags of all batches; returns what the record says."""
    flags = np.array([bool(c) for note in notes for c in note["correct"]])
    labels = np.array([label for note in notes for label in note["labels"]])
    labelled = record_of(task, "labelled")
    expected = labelled["rows"]["test"]
    assert len(flags) == expected, f"{task.job.label}: {len(flags)} of {expected} test images"
    buffer = io.BytesIO()
    np.save(buffer, flags, allow_pickle=False)
    write_atomic(task.folder / FLAGS, buffer.getvalue())
    by_class = class_accuracies(flags, labels, labelled["num_classes"])
    return {
        "accuracy": float(flags.mean()),
        "accuracy_by_class": by_class,
        "worst_class": worst_class(by_class),
        "name": notes[0]["name"],
        "signs": attack_signs(notes),
        "bytes_written": buffer.tell(),
    }


def attack_signs(notes: list[Note]) -> list[str]:
    """What the attack's own checks say against the result, over all batches."""
    name, images = notes[0]["name"], sum(note["rows"] for note in notes)
    counted = Counter(sign for note in notes for sign in note["signs"])
    found = [f"{name}, {n} of {len(notes)} batches: {sign}" for sign, n in sorted(counted.items())]
    broken = sum(note["by_square"] for note in notes)
    if broken > SQUARE_SHARE * images:
        found.append(
            f"{name}: Square, which uses no gradients, broke {broken} of {images} images that the "
            "attacks by gradients had left: masked gradients"
        )
    return found


def read_flags(folder: Place) -> np.ndarray:
    """(N,) bool: which test images stay correct."""
    flags: np.ndarray = np.load(local_copy(folder / FLAGS), allow_pickle=False)
    return flags


def num_batches(job: Job, store: Store) -> int:
    """Parts of a job whose labelled set is published."""
    record = store.record(job.inputs["labelled"])
    assert record is not None
    return -(-int(record["rows"]["test"]) // int(job.config["batch_size"]))


def run(jobs: list[Job], context: StageContext) -> None:
    batches = [num_batches(job, context.store) for job in jobs]
    run_parts(AttackActor, jobs, batches, finish, context)
    posts = board()
    for job in jobs:
        record = context.store.record(job)
        assert record is not None
        posts.accuracy.remote(job.label, job.params["attack"], record["accuracy"])


STAGE = Stage("evaluate", 2, run)
