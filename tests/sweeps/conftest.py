"""A sweep of invented numbers: two settings and two seeds, everything published, nothing computed."""

from __future__ import annotations

import json
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

    def publish(self, point: Point, pgd: float) -> None:
        """What a trial that has finished leaves behind."""
        plan = build_plan(point.config)
        history = [{"step": 40 * i, "seconds": float(i), "val_pgd": 50.0 + i} for i in (1, 2)]
        for job in plan.unique:
            self.store.publish(job, {"history": history, "seconds": 2.0})
        rows = [_result(row, pgd) for row in point.config.rows]
        folder = self.folder / point.name
        pipeline.write_run(point.config, plan, folder)
        write_atomic(folder / "results.json", json.dumps({"rows": rows}))
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
