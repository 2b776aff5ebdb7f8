"""evaluate: one attack on one classifier over the whole test set, chunk by chunk (Ray Data actors)."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssat_ray.adversarial.autoattack import apgd_ce_flags, autoattack_flags
from ssat_ray.adversarial.evaluation import clean_flags, pgd_flags
from ssat_ray.data.labelled import LabelledSet, unit_float
from ssat_ray.models.files import load_classifier
from ssat_ray.stages.base import Stage, StageContext, Task
from ssat_ray.stages.parts import Note, PartActor, record_of, run_parts
from ssat_ray.store import Job, write_atomic

FLAGS = "flags.npy"


class AttackActor(PartActor):
    """Attacks one chunk of test images at a time, in float32."""

    unit = "images"

    def process(self, task: Task, part: int) -> Note:
        folder, config = task.inputs["classifier"], task.job.config
        model = self.cached(folder, lambda: load_classifier(folder))
        labelled = self.cached(
            task.inputs["labelled"], lambda: LabelledSet.load(task.inputs["labelled"])
        )
        images, labels = labelled.tensors("test")
        size = config["batch_size"]
        chunk = slice(part * size, (part + 1) * size)
        x, y = (
            unit_float(images[chunk]).contiguous(memory_format=torch.channels_last),
            labels[chunk],
        )
        name = flags = None
        match task.job.params["attack"]:
            case "clean":
                name, flags = "clean", clean_flags(model, x, y, size)
            case "pgd":
                name = f"PGD-{config['num_steps']}"
                flags = pgd_flags(
                    model,
                    x,
                    y,
                    eps=config["eps"],
                    norm=config["norm"],
                    step_size=config["step_size"],
                    num_steps=config["num_steps"],
                    seed=config["seed"],
                    first_id=part * size,
                    batch_size=size,
                )
            case "apgd-ce":
                name = "APGD-CE"
                flags = apgd_ce_flags(
                    model,
                    x,
                    y,
                    eps=config["eps"],
                    norm=config["norm"],
                    num_steps=config["num_steps"],
                    seed=config["seed"],
                    batch_size=size,
                )
            case "autoattack":
                flags, name = autoattack_flags(
                    model,
                    x,
                    y,
                    eps=config["eps"],
                    norm=config["norm"],
                    seed=config["seed"],
                    batch_size=size,
                )
        assert flags is not None, f"no attack is called {task.job.params['attack']}"
        return {
            "rows": len(y),
            "of_rows": len(labels),
            "name": name,
            "correct": flags.int().tolist(),
        }


def _finish(task: Task, notes: list[Note], context: StageContext) -> dict[str, Any]:
    flags = np.array([bool(c) for note in notes for c in note["correct"]])
    expected = record_of(task, "labelled")["rows"]["test"]
    assert len(flags) == expected, f"{task.job.label}: {len(flags)} of {expected} test images"
    buffer = io.BytesIO()
    np.save(buffer, flags, allow_pickle=False)
    write_atomic(task.folder / FLAGS, buffer.getvalue())
    return {
        "accuracy": float(flags.mean()),
        "name": notes[0]["name"],
        "bytes_written": buffer.tell(),
    }


def read_flags(folder: Path) -> np.ndarray:
    """(N,) bool: which test images stay correct."""
    flags: np.ndarray = np.load(folder / FLAGS, allow_pickle=False)
    return flags


def run(jobs: list[Job], context: StageContext) -> None:
    chunks = []
    for job in jobs:
        record = context.store.record(job.inputs["labelled"])
        assert record is not None
        chunks.append(-(-record["rows"]["test"] // job.config["batch_size"]))
    run_parts(AttackActor, jobs, chunks, _finish, context)


STAGE = Stage("evaluate", 1, run)
