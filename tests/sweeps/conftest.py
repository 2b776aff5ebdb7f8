"""A sweep of invented numbers, of which nothing is computed; and small sweeps that a user's command runs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from ssat_ray import pipeline
from ssat_ray.plan import build_plan
from ssat_ray.store import Store, write_atomic
from ssat_ray.sweeps.record import Record
from ssat_ray.sweeps.space import Point, Space, read_sweep

SEEDS = [0, 1]
FILE = {
    "preset": "digits",
    "row": "random",
    "baselines": ["full"],
    "seeds": SEEDS,
    "space": {"select.ratio": [0.1, 0.2]},
}


@dataclass(frozen=True)
class Invented:
    """A sweep in a folder of its own."""

    root: Path
    space: Space

    @property
    def folder(self) -> Path:
        return self.root / "runs" / "invented"

    @property
    def store(self) -> Store:
        return Store(self.root / "store")

    def again(self, *overrides: str, **changes: Any) -> Invented:
        """The same with another file."""
        path = self.root / "sweep.yaml"
        path.write_text(yaml.safe_dump({**FILE, **changes}))
        places = [f"runtime.{name}={self.root / name}" for name in ("store", "runs")]
        return Invented(self.root, read_sweep(path, [*places, *overrides]))

    def record(self) -> Record:
        return Record(self.folder, self.space)

    def one_of_each(self) -> Record:
        """A record with a finished trial and a stopped one."""
        record, (first, second) = self.record(), self.space.points
        self.publish(first, 70.0)
        record.finish(first.name)
        record.start(second.name)
        record.report(second.name, 40, 33.0)
        record.stop(second.name)
        return record

    def publish(self, point: Point, pgd: float) -> None:
        """What a trial that has finished leaves behind."""
        plan = build_plan(point.config)
        history = [{"step": 40 * i, "seconds": float(i), "val_pgd": 50.0 + i} for i in (1, 2)]
        for job in plan.unique:
            self.store.publish(job, {"history": history, "seconds": 2.0})
        rows = [_result(row, pgd) for row in point.config.rows]
        folder = self.folder / point.name
        pipeline.write_run(point.config, plan, folder)
        write_atomic(folder / "results.json", json.dumps({"rows": rows, "warnings": ["few seeds"]}))
        write_atomic(folder / "report.html", "<!doctype html>")


def _result(row: str, pgd: float) -> dict[str, Any]:
    """A row of `results.json`."""
    accuracy = {
        "mean": pgd,
        "low": pgd - 2,
        "high": pgd + 2,
        "by_seed": [pgd - 1, pgd + 1],
        "seeds": SEEDS,
        "name": "PGD-40",
    }
    difference = {"mean": 1.0, "low": -1.0, "high": 3.0, "paired": True}
    return {
        "row": row,
        "seeds": SEEDS,
        "recipe": ["default", "default"],
        "images": {"labelled": 300, "pool": 1000},
        "accuracy": {"clean": accuracy, "pgd": accuracy},
        "differences": {} if row == "full" else {"full": difference},
        "seconds": {"train": 5.0, "total": 7.0},
        "seconds_train": [5.0, 5.0],
        "steps": {"total": [100, 120], "hit_max_steps": [False, True]},
        "world_size": [2, 2],
        "validation": [60.0, 62.0],
        "flops": 1e9,
        "peak_memory_bytes": {"train": 10, "max": 20},
    }


@pytest.fixture
def invented(tmp_path: Path) -> Invented:
    return Invented(tmp_path, None).again()  # type: ignore[arg-type]


@pytest.fixture
def result() -> Callable[[str, float], dict[str, Any]]:
    """(row, PGD accuracy) -> a row of `results.json`."""
    return _result


PRESET = """\
model: {widths: [8, 16], strides: [2, 2]}
intermediate: {num_steps: 20, batch_size: 64, bn_group: 32, warmup_steps: 5}
pool: {source: synth}
synth: {num_images: 400}
objective: {num_steps: 1, step_size: 0.1}
train: {max_steps: 40, eval_every: 10, batch_size: 32, bn_group: 16, warmup_steps: 5}
evaluate: {attacks: [clean, pgd], pgd_steps: 2, batch_size: 400}
runtime: {checkpoint_minutes: 0}
"""
"""Of sweeps that are really run."""


@dataclass(frozen=True)
class Swept:
    """A folder with a preset and a sweep file."""

    cwd: Path

    @property
    def content(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.cwd / "runs/sweep/sweep.json").read_text())
        return found

    @property
    def trials(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.content["trials"]
        return found

    @property
    def statuses(self) -> list[str]:
        """Of all trials; none before there is a sweep.json."""
        path = self.cwd / "runs/sweep/sweep.json"
        return [trial["status"] for trial in self.trials] if path.exists() else []

    @property
    def outcomes(self) -> list[Any]:
        """What does not depend on the clock: status, accuracies and differences of every trial."""
        return [
            (t["settings"], t["status"], t["results"] and _untimed(t["results"]))
            for t in self.trials
        ]

    def output(self) -> str:
        """What the last command has printed."""
        return (self.cwd / "output.txt").read_text()

    def start(self) -> subprocess.Popen[bytes]:
        command = [str(Path(sys.executable).with_name("ssat")), "sweep", "sweep.yaml"]
        with (self.cwd / "output.txt").open("wb") as output:
            return subprocess.Popen(
                command,
                cwd=self.cwd,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def run(self, code: int = 0) -> str:
        assert self.start().wait(1800) == code, self.output()
        return self.output()

    def kill_when(self, done: Callable[[], bool]) -> str:
        """Start the command and SIGKILL its driver once something is true; returns what it has printed."""
        process = self.start()
        try:
            end = time.time() + 900
            while not done():
                assert process.poll() is None and time.time() < end, self.output()
                time.sleep(0.05)
        finally:
            process.kill()
            process.wait()
        return self.output()


def _untimed(results: dict[str, Any]) -> dict[str, Any]:
    kept = ("accuracy", "differences", "validation", "images", "steps", "flops")
    return {row: {key: entry[key] for key in kept} for row, entry in results.items()}


@pytest.fixture
def swept(tmp_path: Path) -> Callable[..., Swept]:
    """Changes to a sweep file -> the sweep in a new folder."""

    def make(**changes: Any) -> Swept:
        file = {
            "preset": "tiny.yaml",
            "row": "random",
            "baselines": [],
            "seeds": [0],
            "space": {"select.ratio": [0.1, 0.2]},
        }
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        (folder / "tiny.yaml").write_text(PRESET)
        (folder / "sweep.yaml").write_text(yaml.safe_dump({**file, **changes}))
        return Swept(folder)

    return make
