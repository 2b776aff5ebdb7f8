"""Finished runs and a sweep of invented numbers: everything is published by the real code, nothing was computed."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssat_ray import pipeline
from ssat_ray.comparison.outcomes import Outcome
from ssat_ray.config import Config, ModelConfig
from ssat_ray.loading import load_config
from ssat_ray.models.files import classifier_files
from ssat_ray.models.registry import build_classifier
from ssat_ray.plan import build_plan
from ssat_ray.stages.base import Task
from ssat_ray.stages.results import Artefacts, build_results
from ssat_ray.store import Job, Store, write_atomic

IMAGES = 400
BASE = ("rows=[lcs-km,random,full]", "seeds=[0,1]", "pool={source: synth}")
ROWS = {"none": 76.0, "random": 80.0, "full": 84.0, "lcs-km": 81.0, "pcs": 80.5}
SECONDS = {"labelled": 0.5, "synth": 20.0, "intermediate": 10.0, "cluster": 4.0, "score": 3.0}
MODEL = ModelConfig(widths=(4,), strides=(2,))
CLUSTERS, RATIOS = (5, 10, 20), (0.1, 0.4)


def skill(config: Config, row: str) -> float:
    """The accuracy under PGD, in percent, that noise is added to."""
    found = ROWS[row]
    if row not in ("none", "full"):
        found += 1.5 * math.log2(config.select.ratio / 0.2)
    if row == "lcs-km":
        found += 0.8 * math.log2((config.cluster.k or 10) / 10)
    return found


def draw(job: Job) -> np.random.Generator:
    return np.random.default_rng(int(job.digest, 16))


def trained(config: Config, job: Job, row: str) -> dict[str, Any]:
    """The record of a training; its seconds depend on the digest alone, as those of a stored one do."""
    shares = {"none": 0.0, "full": 1.0}
    pool = round(config.synth.num_images * shares.get(row, config.select.ratio))
    return {
        "seconds": 30 + pool / 100 + draw(job).random(),
        "steps": 1000,
        "plateau_step": 800,
        "hit_max_steps": row == "full",
        "flops": 1e12,
        "val_pgd": skill(config, row) + draw(job).normal(0, 0.5),
        "val_clean": 95.0,
        "history": [{"step": 1000, "seconds": 40.0, "val_pgd": 80.0}],
        "images": {"labelled": 300, "pool": pool},
        "world_size": 2,
        "peak_pss_bytes": 2**30 + 1000 * pool,
    }


def flags(config: Config, job: Job, row: str, attack: str) -> np.ndarray:
    """Which images stay correct: the same images are hard for all, and a training has its luck."""
    mean = (
        skill(config, row)
        + {"clean": 12.0, "pgd": 0.0, "apgd-ce": -1.0, "autoattack": -3.0}[attack]
    )
    rng = draw(job.inputs["classifier"])
    hard = np.random.default_rng(7).random(IMAGES)
    luck = rng.normal(0, 0.006)
    return hard + rng.normal(0, 0.03, IMAGES) + luck < mean / 100


@dataclass(frozen=True)
class Invented:
    """A folder with runs and a store."""

    root: Path

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    def config(self, *overrides: str) -> Config:
        places = (f"runtime.store={self.root / 'store'}", f"runtime.runs={self.runs}")
        return load_config("digits", [*BASE, *places, *overrides])

    def run(self, name: str, *overrides: str) -> Path:
        """A finished comparison; what another one has published is shared."""
        config = self.config(*overrides)
        plan, store = build_plan(config), Store(config.runtime.store)
        files = classifier_files(
            build_classifier(MODEL, (1, 8, 8), 10, seed=0), MODEL, (1, 8, 8), 10
        )
        for job in plan.unique[:-1]:
            if store.record(job) is not None:
                continue
            record: dict[str, Any] = {"peak_pss_bytes": 2**28}
            record["seconds"] = SECONDS.get(job.stage, 1.0)
            if job.stage == "labelled":
                rows = {"labelled": 300, "validation": 700, "test": IMAGES}
                record |= {"rows": rows, "num_classes": 10, "image_shape": [1, 8, 8]}
            elif job.stage == "synth":
                record["rows"] = config.synth.num_images
            elif job.stage == "train":
                record = trained(config, job, job.about.split()[0])
                if "default" in job.inputs:
                    record |= {"recipe": "default", "seconds_all_recipes": 130.0}
                for file, data in files.items():
                    write_atomic(store.folder(job) / file, data)
            elif job.stage == "evaluate":
                attack, row = job.params["attack"], job.about.split()[0]
                buffer = io.BytesIO()
                np.save(buffer, flags(config, job, row, attack))
                write_atomic(store.folder(job) / "flags.npy", buffer.getvalue())
                names = {"pgd": "PGD-40", "apgd-ce": "APGD-CE", "autoattack": "AutoAttack"}
                record |= {"name": names.get(attack, attack), "accuracy_by_class": [0.8, None]}
                record["signs"] = []
            store.publish(job, record)
        assert plan.report is not None
        results = build_results(Artefacts(Task.of(plan.report, store)))
        folder = self.runs / name
        write_atomic(folder / "results.json", json.dumps(results))
        write_atomic(folder / "report.html", "<!doctype html>")
        pipeline.write_run(config, plan, folder)
        return folder

    def sweep(self, name: str = "grid") -> Path:
        """Six configurations of two settings, and one that failed; baselines are shared."""
        trials: list[dict[str, Any]] = []
        for k in CLUSTERS:
            for ratio in RATIOS:
                trial = f"k{k}r{round(100 * ratio)}"
                self.run(f"{name}/{trial}", f"cluster.k={k}", f"select.ratio={ratio}")
                settings = {"cluster.k": k, "select.ratio": ratio}
                trials.append({"name": trial, "settings": settings, "status": "finished"})
        failed = {"name": "odd", "settings": {"cluster.k": 40, "select.ratio": 0.1}}
        trials.append({**failed, "status": "failed", "cause": "train failed: no space left"})
        content = {"schema": 1, "file": {"row": "lcs-km", "seeds": [0, 1]}, "trials": trials}
        write_atomic(self.runs / name / "sweep.json", json.dumps(content))
        return self.runs / name


@pytest.fixture(scope="session")
def invented(tmp_path_factory: pytest.TempPathFactory) -> Invented:
    """A sweep `grid` and the runs `plain` and `attacked`, which shares all with one of its trials."""
    found = Invented(tmp_path_factory.mktemp("invented"))
    found.sweep()
    found.run("plain", "rows=[none,random,pcs,lcs-km,full]", "seeds=[0,1,2]")
    found.run("attacked", "cluster.k=20", "select.ratio=0.4", "evaluate.autoattack_seeds=[1]")
    return found


@pytest.fixture(scope="session")
def outcome() -> Callable[..., Outcome]:
    """An outcome of given PGD accuracies by seed; anything else may be given too."""

    def make(row: str, *values: float, **more: Any) -> Outcome:
        about = {
            "row": row,
            "trials": (os.urandom(4).hex(),),
            "source": "runs",
            "candidate": row not in ("none", "random", "full"),
            "settings": {},
            "seeds": tuple(range(len(values))),
            "accuracy": {"pgd": dict(enumerate(values))},
            "names": {"pgd": "PGD-40"},
            "seconds": {"train": 60.0, "total": 60.0},
            "labelled": 300,
            "pool": 1000,
            "peak_memory": 2.0**30,
            "gpu_seconds": 0.0,
        }
        return Outcome(**{**about, **more})

    return make
