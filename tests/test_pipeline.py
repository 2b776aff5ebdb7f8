"""The whole pipeline through real Ray: up to date, partial recomputation, kills, shared stores."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ssat_ray.loading import load_config
from ssat_ray.plan import build_plan
from ssat_ray.store import Job, Store

SSAT = str(Path(sys.executable).with_name("ssat"))
pytestmark = pytest.mark.ray


def run_ssat(*args: str, cwd: Path, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SSAT, *args], cwd=cwd, capture_output=True, text=True, timeout=timeout)


def artefact_hashes(store: Store, job: Job) -> dict[str, str]:
    """SHA-256 of every file of an artefact but its record and a dead lease, which hold times and pids."""
    folder = store.folder(job)
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name not in ("stage.json", "lease.json")
    }


def test_every_artefact_is_published(tiny_run: Any) -> None:
    assert all(tiny_run.store.record(job) is not None for job in tiny_run.plan.unique)
    leftovers = [
        p
        for p in (tiny_run.cwd / "store").rglob("*")
        if p.name in ("lease.json", "state", "parts") or p.suffix == ".tmp"
    ]
    assert leftovers == []


def test_same_command_is_up_to_date_and_quick(tiny_run: Any, tiny_preset: Path) -> None:
    before = {job.digest: tiny_run.store.record(job) for job in tiny_run.plan.unique}
    start = time.perf_counter()
    done = run_ssat("run", str(tiny_preset), "--name", "tiny", cwd=tiny_run.cwd)
    seconds = time.perf_counter() - start
    assert done.returncode == 0, done.stderr
    assert "everything is up to date" in done.stdout
    assert seconds < 20
    assert before == {job.digest: tiny_run.store.record(job) for job in tiny_run.plan.unique}


def test_a_new_ratio_recomputes_only_select_and_what_follows(
    tiny_run: Any, tiny_preset: Path
) -> None:
    """Also: the old selection stays."""
    settings = ["select.ratio=0.1", "rows=[lcs-km,full]"]
    args = [argument for setting in settings for argument in ("--set", setting)]
    done = run_ssat("select", str(tiny_preset), *args, cwd=tiny_run.cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"] (\w+): (\d+) to do", done.stdout) == [("select", "1")]
    plan = build_plan(load_config(str(tiny_preset), settings))
    assert tiny_run.store.record(plan.jobs["lcs-km", 0, "select"])["rows"] == 40
    assert tiny_run.store.record(tiny_run.plan.jobs["lcs-km", 0, "select"])["rows"] == 100
    left = [job for job in plan.unique if tiny_run.store.record(job) is None]
    assert {job.stage for job in left} == {"train", "evaluate", "report"}
    assert [job.label for job in left if job.stage == "train"] == ["train lcs-km seed 0"]


PROOF_OF_WORK: dict[str, Callable[[Path], bool]] = {
    "intermediate": lambda folder: any((folder / "state").glob("*.pt")),
    "pretrain": lambda folder: any((folder / "state").glob("*.pt")),
    "generate": lambda folder: (folder / "parts" / "00000.json").exists(),
    "cluster": lambda folder: (folder / "parts" / "00000.json").exists(),
    "score": lambda folder: (folder / "parts" / "00000.json").exists(),
    "select": lambda folder: (folder / "lease.json").exists(),
    "train": lambda folder: any((folder / "state").glob("*.pt")),
    "evaluate": lambda folder: (folder / "parts" / "00000.json").exists(),
    "report": lambda folder: (folder / "lease.json").exists(),
}
"""How to see that a stage is at work: a state, a finished part, or at least the lease."""


def kill_during(stage: str, preset: Path, cwd: Path, store: Store, jobs: list[Job]) -> None:
    """Start the command and SIGKILL its driver once the stage is at work and unfinished."""
    command = [SSAT, "run", str(preset), "--name", "tiny"]
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.time() + 400
        while time.time() < deadline:
            assert process.poll() is None, f"the run ended before {stage} could be killed"
            if any(
                PROOF_OF_WORK[stage](store.folder(job)) and store.record(job) is None
                for job in jobs
                if job.stage == stage
            ):
                return
            time.sleep(0.02)
        raise AssertionError(f"{stage} never started")
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.slow
def test_killed_in_each_stage_the_run_ends_with_the_same_bytes(
    tiny_run: Any, tiny_preset: Path, tmp_path: Path
) -> None:
    store, jobs = Store(tmp_path / "store"), tiny_run.plan.unique
    for stage in PROOF_OF_WORK:
        kill_during(stage, tiny_preset, tmp_path, store, jobs)
        unfinished = [j.label for j in jobs if j.stage == stage and store.record(j) is None]
        assert unfinished, f"{stage} had finished when the kill came"
    done = run_ssat("run", str(tiny_preset), "--name", "tiny", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for job in jobs:
        if job.stage == "report":
            continue
        assert artefact_hashes(store, job) == artefact_hashes(tiny_run.store, job), job.label
    for row in tiny_run.results["rows"]:
        resumed = tiny_run.__class__(tmp_path, tiny_run.config, "", 0.0).row(row["row"])
        assert resumed["accuracy"] == row["accuracy"]
        assert resumed["steps"] == row["steps"]


@pytest.mark.slow
def test_two_processes_share_a_store(tiny_preset: Path, tmp_path: Path) -> None:
    """Each stage is computed by one of them; both end well."""
    args = ["run", str(tiny_preset), "--set", "rows=[none,full]"]
    processes = [
        subprocess.Popen(
            [SSAT, *args, "--name", name, "--set", "runtime.num_cpus=2"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")
    ]
    outputs = [p.communicate(timeout=900)[0] for p in processes]
    assert [p.returncode for p in processes] == [0, 0], "\n".join(outputs)
    for stage in ("pretrain", "generate"):
        assert sum(len(re.findall(rf"] {stage}: 1 to do", text)) for text in outputs) == 1


@pytest.mark.slow
def test_a_killed_training_worker_is_replaced(
    tiny_run: Any, tiny_preset: Path, tmp_path: Path
) -> None:
    """SIGKILL of one DDP worker: Ray Train restarts the group and the result is the same."""
    import psutil

    shutil.copytree(tiny_run.cwd / "store", tmp_path / "store")
    store = Store(tmp_path / "store")
    job = tiny_run.plan.jobs["full", 0, "train"]
    shutil.rmtree(store.folder(job))
    process = subprocess.Popen(
        [SSAT, "train", str(tiny_preset)], cwd=tmp_path, stdout=subprocess.DEVNULL
    )
    while not any((store.folder(job) / "state").glob("*.pt")):
        assert process.poll() is None
        time.sleep(0.02)
    workers = [
        p
        for p in psutil.Process(process.pid).children(recursive=True)
        if "RayTrainWorker" in " ".join(p.cmdline() or [p.name()])
    ]
    assert workers, "no Ray Train worker found"
    workers[0].kill()
    assert process.wait(timeout=400) == 0
    assert artefact_hashes(store, job) == artefact_hashes(tiny_run.store, job)
