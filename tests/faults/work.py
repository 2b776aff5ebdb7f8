"""The stages that faults meet: small presets in which each lasts long enough, how far one is, seen from outside, and a run
without faults to compare with."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ssat_ray.loading import load_config
from ssat_ray.plan import build_plan
from ssat_ray.stages.base import STATE
from ssat_ray.stages.parts import NOTES
from ssat_ray.stages.refine import CHECKPOINT
from ssat_ray.stages.report import REPORT, RESULTS
from ssat_ray.store import Store
from tests.artefacts import files
from tests.faults.hosts import Hosts

MOST_SECONDS = 600
"""That a stage takes to get to where the fault comes."""
PRESETS = {
    "guided": """\
rows: [lcg-km]
model: {widths: [16, 32], strides: [2, 2]}
intermediate: {num_steps: 1000, batch_size: 64, bn_group: 32}
pretrain: {channels: [16, 32], norm_num_groups: 4, num_steps: 400, batch_size: 64}
generate: {num_images: 3000, shard_rows: 30, num_inference_steps: 40}
select: {ratio: 0.5}
finetune: {num_steps: 300, batch_size: 64}
objective: {num_steps: 3, step_size: 0.1}
train: {max_steps: 320, eval_every: 80, patience: 99, batch_size: 64, bn_group: 32}
evaluate: {attacks: [clean, pgd], pgd_steps: 40, pgd_restarts: 4, batch_size: 20}
runtime: {checkpoint_minutes: 0.01}
""",
    "selection": """\
goal: selection
rows: [lcs-km]
model: {widths: [8, 16], strides: [2, 2]}
intermediate: {num_steps: 60, batch_size: 64, bn_group: 32}
pool: {source: synth}
synth: {num_images: 3000000, shard_rows: 60000}
cluster: {k: 50, restarts: 1, sample_rows: 50000, refine_rows: 1000000, refine_iterations: 40, tolerance: 0}
select: {ratio: 0.9}
""",
}


def parts(folder: Path) -> int:
    return sum(1 for _ in (folder / NOTES).glob("[0-9]*.json"))


def steps(folder: Path) -> int:
    return max((int(path.stem) for path in (folder / STATE).glob("*.pt")), default=0)


def iterations(folder: Path) -> int:
    try:
        with safe_open(folder / CHECKPOINT, "np") as file:
            return len(file.get_tensor("history"))
    except (FileNotFoundError, SafetensorError):
        return 0


def shards(folder: Path) -> int:
    return sum(1 for _ in folder.glob("shard-*.parquet"))


def report(folder: Path) -> dict[str, Any]:
    """What a report says, without when it was made and by which checkout: that is on its page too."""
    results = json.loads((folder / RESULTS).read_text())
    assert (folder / REPORT).read_text().rstrip().endswith("</html>")
    return {key: value for key, value in results.items() if key not in ("created", "git_commit")}


@dataclass(frozen=True)
class Work:
    """A stage at work.

    Args:
        preset: that it is of.
        verb: of `ssat`.
        job: its name in the plan.
        process: in the command line of the process that works.
        unit: of `done` and `total`, for people.
        done: of a folder, how many units; None for a stage of one task, which writes nothing before its end.
        total: units in all.
        result: of a finished folder, what a fault must not change.
    """

    preset: str
    verb: str
    job: str
    process: str
    unit: str = "s"
    done: Callable[[Path], int] | None = None
    total: int = 0
    result: Callable[[Path], Any] = files


WORK = {
    "intermediate": Work(
        "guided", "intermediate", "intermediate", "RayTrainWorker", "steps", steps, 1000
    ),
    "pretrain": Work("guided", "pretrain", "pretrain", "RayTrainWorker", "steps", steps, 400),
    "generate": Work("guided", "generate", "base", "SampleActor", "shards", parts, 30),
    "finetune": Work("guided", "finetune", "finetune", "RayTrainWorker", "steps", steps, 300),
    "quality": Work("guided", "quality", "quality", "_quality"),
    "train": Work("guided", "train", "train", "RayTrainWorker", "steps", steps, 400),
    "evaluate": Work("guided", "evaluate", "evaluate:pgd", "AttackActor", "batches", parts, 40),
    "report": Work("guided", "report", "report", "_report", result=report),
    "synth": Work("selection", "synth", "pool", "SynthActor", "shards", parts, 50),
    "cluster": Work("selection", "cluster", "cluster", "KeepActor", "shards", parts, 50),
    "refine": Work("selection", "cluster", "cluster", "ClusterActor", "iterations", iterations, 41),
    "score": Work("selection", "score", "score", "ScoreActor", "shards", parts, 50),
    "select": Work("selection", "select", "select", "_select", "shards", shards, 11),
}


class Watch:
    """How far a stage is: in its units, or of one task in seconds since it began, of those it took undisturbed.

    Args:
        folder: where it works.
        undisturbed: the folder of the undisturbed one.
        hosts: where a task is looked for.
    """

    def __init__(
        self, work: Work, folder: Path, undisturbed: Path, hosts: Hosts | None = None
    ) -> None:
        self.work, self.folder, self.hosts = work, folder, hosts
        self.total: float = work.total
        self._began: float | None = None
        if work.done is None:
            record = Store.read_record(undisturbed)
            assert record is not None
            self.total = round(record["seconds"], 1)

    def done(self, now: float | None = None) -> float:
        """How far it is; of one task, at the monotonic time `now`: what kills its hosts takes seconds."""
        if self.work.done is not None:
            return self.work.done(self.folder)
        if self._began is None and self.hosts and self.hosts.working(self.work.process):
            self._began = time.monotonic()
        now = time.monotonic() if now is None else now
        return 0.0 if self._began is None else round(now - self._began, 1)

    def share(self) -> float:
        return self.done() / self.total


@dataclass(frozen=True)
class Undisturbed:
    """A run of a preset by a local Ray, to its end."""

    cwd: Path
    preset: str

    @cached_property
    def folders(self) -> dict[str, Path]:
        """Name in the plan -> place in the store, relative."""
        plan, store = build_plan(load_config(str(self.cwd / "preset.yaml"))), Store("store")
        jobs = {name: job for (_, _, name), job in plan.jobs.items()}
        jobs |= {"report": plan.report} if plan.report else {}
        return {name: store.folder(job).relative_to(store.root) for name, job in jobs.items()}


def wait_until(share: float, watch: Watch, process: subprocess.Popen[bytes], output: Path) -> None:
    """Until so much of the stage is done."""
    latest = time.monotonic() + MOST_SECONDS
    while watch.share() < share:
        assert process.poll() is None, f"it ended before the fault came: {end_of(output)}"
        assert time.monotonic() < latest, f"{watch.done()} of {watch.total}: {end_of(output)}"
        time.sleep(0.005 if watch.work.done else 0.05)


def end_of(output: Path) -> str:
    return output.read_text()[-3000:]


def begin(work: Work, oracle: Undisturbed, cwd: Path) -> Path:
    """A copy of an undisturbed run without one stage and the report; returns the folder in which that will be."""
    shutil.copy(oracle.cwd / "preset.yaml", cwd)
    shutil.copytree(oracle.cwd / "store", cwd / "store")
    for name in {work.job, "report"} & set(oracle.folders):
        shutil.rmtree(cwd / "store" / oracle.folders[name])
    return cwd / "store" / oracle.folders[work.job]
