"""`ssat bench autoattack`: the stage `evaluate` with two actors against one, one thread each, in one Ray session.

Seconds run from the first batch's start to the last one's end. Processes, imports and the loading of model
and images come before: an actor takes no batch until all of its pool are ready.
"""

from __future__ import annotations

import importlib
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssat_ray import runtime
from ssat_ray.bench.measure import Comparison
from ssat_ray.board import start_board
from ssat_ray.config import Config, RuntimeConfig
from ssat_ray.errors import RunFailed
from ssat_ray.loading import load_config
from ssat_ray.places import remove_tree, write_atomic
from ssat_ray.plan import STAGES, build_plan
from ssat_ray.stages import evaluate
from ssat_ray.stages.base import Session, StageContext, Task
from ssat_ray.stages.evaluate import AttackActor, read_flags
from ssat_ray.stages.parts import Note, run_parts
from ssat_ray.store import Job, Store

BAR = 1.7
TRAINING = ("train.none_recipes={}", "train.max_steps=100", "threat.eps=0.15")
"""Of the digits net: enough that about half of the images outlast AutoAttack and every attack has work."""
GATE = "gate"


class GatedActor(AttackActor):
    """Begins when all actors of the pool are up, and notes when it worked (seconds of one clock)."""

    def __init__(self, tasks: list[Task], num_parts: list[int], runtime: RuntimeConfig) -> None:
        super().__init__(tasks, num_parts, runtime)
        importlib.import_module("pyautoattack")
        self.classifier(tasks[0])(self.batch(tasks[0], 0)[0])
        gate = tasks[0].store_root / GATE
        write_atomic(gate / str(time.monotonic_ns()), "")
        while len(list(gate.iterdir())) < min(runtime.actors, sum(num_parts)):
            time.sleep(0.01)

    def process(self, task: Task, part: int) -> Note:
        begin = time.monotonic()
        note = super().process(task, part)
        return {**note, "begin": begin, "end": time.monotonic()}


@dataclass(frozen=True)
class Took:
    """Seconds of an attack: from the first batch's start to the last one's end, and of all batches together."""

    wall: float
    busy: float


def run(
    rows: int = 797, repeats: int = 5, overrides: tuple[str, ...] = (), folder: Path | None = None
) -> list[Comparison]:
    """One line: ours is two actors, bare is one. Noted: the seconds that their actors worked, in total.

    Args:
        rows: test images of the digits, at most 797, all of them by default; in the preset's own batches.
        repeats: runs of each side, in alternation.
        overrides: of the configuration, for a shorter training.
        folder: of the store; removed afterwards if None.

    Raises:
        RunFailed: an image's flag is not the same for one actor and for two.
    """
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="ssat-bench-") as scratch:
            return run(rows, repeats, overrides, Path(scratch))
    config = load_config("digits", [*TRAINING, *settings(rows), *overrides])
    store = Store(folder / "store")
    job = prepare(config, store)
    took: dict[int, list[Took]] = {2: [], 1: []}
    flags: list[np.ndarray] = []
    with runtime.ray_session(config.runtime):
        board = start_board()  # it lives as long as this handle
        for _ in range(repeats):
            for actors, found in took.items():
                found.append(attack(job, store, actors))
                flags.append(read_flags(store.folder(job)))
        del board
    if any(not np.array_equal(flags[0], other) for other in flags[1:]):
        raise RunFailed("AutoAttack's flags depend on the number of actors.")
    batches = evaluate.num_batches(job, store)
    busy = {n: statistics.median(one.busy for one in found) for n, found in took.items()}
    return [
        Comparison(
            f"AutoAttack, digits net, {rows} images in {batches} batches, two actors (ours) and one",
            [one.wall for one in took[2]],
            [one.wall for one in took[1]],
            BAR,
            {
                "robust": f"{flags[0].mean():.1%}",
                "flags": "identical by image",
                "busy, two": f"{busy[2]:.3g} s",
                "busy, one": f"{busy[1]:.3g} s",
            },
        )
    ]


def settings(rows: int) -> list[str]:
    """Overrides of the configuration: what is attacked."""
    return [
        "rows=[none,random]",
        f"data.num_test={rows}",
        "evaluate.autoattack_seeds=[0]",
    ]


def prepare(config: Config, store: Store) -> Job:
    """Train the digits net here, and return the job that attacks it."""
    jobs = build_plan(config).jobs
    context = StageContext(store, config.runtime)
    STAGES["labelled"].run([jobs["none", 0, "labelled"]], context)
    task = Task.of(jobs["none", 0, "train"], store)
    train = STAGES["train"].train
    assert train is not None
    files, record = train(task, Session.alone(task.folder))
    task.write(files)
    task.publish(record)
    return jobs["none", 0, "evaluate:autoattack"]


def attack(job: Job, store: Store, actors: int) -> Took:
    """Attack anew with so many actors; RunFailed if one of them had nothing to do."""
    remove_tree(store.folder(job))
    gate = store.root / GATE
    remove_tree(gate)
    gate.mkdir(parents=True)
    took: list[Took] = []

    def finish(task: Task, notes: list[Note], context: StageContext) -> dict[str, Any]:
        if len({n["pid"] for n in notes}) != actors:
            raise RunFailed(f"Not all of {actors} actors had a batch.")
        wall = max(n["end"] for n in notes) - min(n["begin"] for n in notes)
        took.append(Took(wall, sum(n["end"] - n["begin"] for n in notes)))
        return evaluate.finish(task, notes, context)

    context = StageContext(store, RuntimeConfig(actors=actors))
    run_parts(GatedActor, [job], [evaluate.num_batches(job, store)], finish, context)
    return took[0]
