"""Hosts that die, are cut off or start anew while a job works: the same artefacts as on an undisturbed machine.

`make cluster-test` has one fault of each kind. `SSAT_FAULTS=all` (`make chaos`) meets every stage with every
fault. `SSAT_FAULT_FOLDER` names a folder that keeps the undisturbed runs and `faults.jsonl`, which says of each
fault what was hit and how far the stage was; what is in it is not done again.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from safetensors import SafetensorError, safe_open

from ssat_ray.loading import load_config
from ssat_ray.plan import build_plan
from ssat_ray.stages.base import STATE
from ssat_ray.stages.parts import NOTES
from ssat_ray.stages.refine import CHECKPOINT
from ssat_ray.store import RECORD, Store
from tests.artefacts import files

if TYPE_CHECKING:
    from tests.faults.conftest import Hosts

pytestmark = [pytest.mark.ray, pytest.mark.slow]

PRESETS = {
    "guided": """\
rows: [lcg-km]
model: {widths: [16, 32], strides: [2, 2]}
intermediate: {num_steps: 60, batch_size: 64, bn_group: 32}
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
EARLIEST, LATEST = 0.1, 0.9


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


@dataclass(frozen=True)
class Work:
    """A stage at work, as it is seen from outside.

    Args:
        preset: that it is of.
        verb: of `ssat`.
        job: its name in the plan.
        process: in the name of the process that works.
        done: of a folder, how many units.
        total: units in all.
    """

    preset: str
    verb: str
    job: str
    process: str
    done: Callable[[Path], int]
    total: int


WORK = {
    "pretrain": Work("guided", "pretrain", "pretrain", "RayTrainWorker", steps, 400),
    "generate": Work("guided", "generate", "base", "SampleActor", parts, 30),
    "finetune": Work("guided", "finetune", "finetune", "RayTrainWorker", steps, 300),
    "train": Work("guided", "train", "train", "RayTrainWorker", steps, 400),
    "evaluate": Work("guided", "evaluate", "evaluate:pgd", "AttackActor", parts, 40),
    "synth": Work("selection", "synth", "pool", "SynthActor", parts, 50),
    "cluster": Work("selection", "cluster", "cluster", "KeepActor", parts, 50),
    "refine": Work("selection", "cluster", "cluster", "ClusterActor", iterations, 41),
    "score": Work("selection", "score", "score", "ScoreActor", parts, 50),
    "select": Work("selection", "select", "select", "_select", shards, 11),
}
KINDS = ("host lost", "cut off for 5 s", "cut off until declared dead", "head started anew")
ONE_OF_EACH = [
    ("pretrain", "head started anew"),
    ("generate", "host lost"),
    ("refine", "host lost"),
    ("score", "cut off for 5 s"),
    ("select", "host lost"),
    ("finetune", "cut off until declared dead"),
    ("train", "host lost"),
    ("evaluate", "host lost"),
]
ALL = os.environ.get("SSAT_FAULTS") == "all"
TRIALS = [(stage, kind) for kind in KINDS for stage in WORK] if ALL else ONE_OF_EACH


@dataclass(frozen=True)
class Undisturbed:
    """A run of a preset by a local Ray, to its end."""

    cwd: Path
    preset: str

    @cached_property
    def folders(self) -> dict[str, Path]:
        """Name in the plan -> place in the store, relative."""
        config = load_config(str(self.cwd / "preset.yaml"))
        store = Store("store")
        return {
            name: store.folder(job).relative_to(store.root)
            for (_, _, name), job in build_plan(config).jobs.items()
        }


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of undisturbed runs and the log."""
    given = os.environ.get("SSAT_FAULT_FOLDER")
    return Path(given).absolute() if given else tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="session")
def undisturbed(kept: Path) -> Callable[[str], Undisturbed]:
    """Preset -> its run, which is done once and, if it has been begun before, to its end."""
    found: dict[str, Undisturbed] = {}

    def get(preset: str) -> Undisturbed:
        if preset not in found:
            cwd = kept / preset
            cwd.mkdir(parents=True, exist_ok=True)
            (cwd / "preset.yaml").write_text(PRESETS[preset])
            verb = "evaluate" if preset == "guided" else "run"
            clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
            command = [sys.executable, "-m", "ssat_ray", verb, "preset.yaml"]
            done = subprocess.run(
                command, cwd=cwd, env=clean, capture_output=True, text=True, timeout=1200
            )
            assert done.returncode == 0, done.stdout[-2000:] + done.stderr
            found[preset] = Undisturbed(cwd, preset)
        return found[preset]

    return get


def log_entries(log: Path) -> list[dict[str, Any]]:
    lines = log.read_text().splitlines() if log.exists() else []
    return [json.loads(line) for line in lines]


def wait_until_between(
    work: Work, folder: Path, share: float, process: subprocess.Popen[bytes]
) -> None:
    """Until a share of the stage is done and somebody works at it."""
    while work.done(folder) < share * work.total:
        said = (folder.parents[2] / "output.txt").read_text()[-3000:]
        assert process.poll() is None, f"it ended before the fault came: {said}"
        time.sleep(0.005)


def strike(kind: str, work: Work, hosts: Hosts, rng: random.Random) -> dict[str, Any]:
    """Do it, and mend it as an operator (or Kubernetes) would."""
    if kind == "head started anew":
        hosts.kill(1)
        for worker in (2, 3):
            hosts.kill(worker)
        hosts.start()
        return {"host": 1}
    working = hosts.working(work.process)
    assert working, f"nobody works as {work.process}"
    host = rng.choice(working)
    if kind == "host lost":
        hosts.kill(host)
        hosts.start_node(host)
        return {"host": host}
    before = hosts.alive()[host]
    hosts.set_link(host, "down")
    begun = time.monotonic()
    if kind == "cut off for 5 s":
        time.sleep(5)
    else:
        while hosts.alive().get(host) == before:
            assert time.monotonic() - begun < 120, "Ray never declared it dead"
            time.sleep(0.5)
    hosts.set_link(host, "up")
    seconds = time.monotonic() - begun
    if kind == "cut off for 5 s":
        assert hosts.alive().get(host) == before, "Ray took the host for dead"
    else:
        hosts.kill(host)
        hosts.start_node(host)
    return {"host": host, "cut_off_seconds": round(seconds, 1)}


@pytest.mark.parametrize(("stage", "kind"), TRIALS)
def test_a_fault_changes_no_byte(
    stage: str,
    kind: str,
    hosts: Hosts,
    kept: Path,
    undisturbed: Callable[[str], Undisturbed],
    tmp_path: Path,
) -> None:
    log = kept / "faults.jsonl"
    if any(entry["stage"] == stage and entry["fault"] == kind for entry in log_entries(log)):
        pytest.skip("in the log already")
    work, rng = WORK[stage], random.Random(f"{stage} {kind}")
    oracle = undisturbed(work.preset)
    name = oracle.folders[work.job]
    shutil.copy(oracle.cwd / "preset.yaml", tmp_path)
    shutil.copytree(oracle.cwd / "store", tmp_path / "store")
    shutil.rmtree(tmp_path / "store" / name)
    folder = tmp_path / "store" / name
    hosts.wait_for_cpus()
    command, begun = ("submit", work.verb, "preset.yaml", "--name", "faults"), time.monotonic()
    process = hosts.ssat(tmp_path, *command)
    wait_until_between(work, folder, rng.uniform(0.15, 0.6), process)
    assert not (folder / RECORD).exists(), "it had ended when the fault came"
    at = work.done(folder)
    entry = {"stage": stage, "fault": kind, "done": at, "total": work.total}
    entry |= strike(kind, work, hosts, rng)
    struck = time.monotonic()
    submissions = 1
    while process.wait(timeout=600) != 0:
        said = (tmp_path / "output.txt").read_text()[-3000:]
        assert kind == "head started anew" and submissions == 1, said
        hosts.wait_for_cpus()
        process, submissions = hosts.ssat(tmp_path, *command), 2
    assert EARLIEST <= at / work.total <= LATEST, entry
    assert submissions == 1 + (kind == "head started anew"), entry
    assert files(folder) == files(oracle.cwd / "store" / name)
    entry |= {"submissions": submissions, "after_seconds": round(time.monotonic() - struck)}
    entry |= {"seconds": round(time.monotonic() - begun), "identical": True}
    with open(log, "a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
