"""Two DDP workers of one thread each against one process of two threads, the same global batch (Ray Train)."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train.torch import TorchTrainer

from ssat_ray.bench.measure import Comparison
from ssat_ray.bench.step import DIGITS, WRN, Case, trainer
from ssat_ray.config import RuntimeConfig
from ssat_ray.runtime import ray_session, use_threads
from ssat_ray.stages.process_group import GroupConfig
from ssat_ray.training.step import Engine
from ssat_ray.training.world import World

CASES = (Case(*DIGITS, "float32", 0.85), Case(*WRN, "float32", 0.85))
SECONDS = 15.0
"""How long each side trains in a repeat, after a step that is not counted."""


def run(
    repeats: int = 5, cases: tuple[Case, ...] = CASES, seconds: float = SECONDS
) -> list[Comparison]:
    """One line a case: seconds of a step of two DDP workers and of one process, in alternation.

    Both sides are a Ray Train group that takes `ClassifierTrainer.advance`; starting it is not counted.
    The workers exchange gradients over gloo and add them exactly, as the product does; the one process
    makes one pass over the batch. Noted: images a second.
    """
    found: dict[str, tuple[list[float], list[float]]] = {case.name: ([], []) for case in cases}
    with tempfile.TemporaryDirectory() as scratch, ray_session(RuntimeConfig(num_cpus=3)):
        for repeat in range(repeats):
            for workers, side in ((2, 0), (1, 1)):
                folder = Path(scratch) / f"{repeat}-{workers}"
                _train(cases, workers, seconds, folder)
                for case in cases:
                    took = json.loads((folder / f"{case.name}.json").read_text())
                    found[case.name][side].append(took)
    return [_line(case, *found[case.name]) for case in cases]


def _line(case: Case, ours: list[float], bare: list[float]) -> Comparison:
    def pace(seconds: list[float]) -> str:
        return f"{case.batch_size / sorted(seconds)[len(seconds) // 2]:,.0f} images/s"

    what = f"step of two workers, {case.name}, batch {case.batch_size}, {case.precision}"
    return Comparison(what, ours, bare, case.bar, {"two": pace(ours), "one": pace(bare)})


def _train(cases: tuple[Case, ...], workers: int, seconds: float, folder: Path) -> None:
    config = {
        "cases": cases,
        "workers": workers,
        "threads": 2 // workers,
        "seconds": seconds,
        "folder": folder,
    }
    TorchTrainer(
        _worker,
        train_loop_config=config,
        torch_config=GroupConfig(backend="gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers, resources_per_worker={"CPU": 2 / workers}
        ),
        run_config=ray.train.RunConfig(name="bench", storage_path=str(folder)),
    ).fit()


def _worker(config: dict[str, Any]) -> None:
    use_threads(config["threads"])
    world = World.current()
    for case in config["cases"]:
        ours = trainer(case, world, Engine(exact=world.size > 1))
        ours.advance()
        world.barrier()
        start, steps, goes_on = time.perf_counter(), 0, 1.0
        while goes_on:
            ours.advance()
            steps += 1
            goes_on = world.first(float(time.perf_counter() - start < config["seconds"]))
        took = (time.perf_counter() - start) / steps
        if world.rank == 0:
            (config["folder"] / f"{case.name}.json").write_text(json.dumps(took))
        assert (world.size, torch.get_num_threads()) == (config["workers"], config["threads"])
