"""SIGKILL of actors and of the driver over a large pool, at random points: the bytes stay the same.

`SSAT_KILL_TRIALS` and `SSAT_KILL_IMAGES` set how many trials and how large a pool; `SSAT_KILL_LOG` names
the file that says of each trial what was killed and how far its stage was.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors import safe_open

from ssat_ray.loading import load_config
from ssat_ray.plan import build_plan
from ssat_ray.stages.parts import NOTES
from ssat_ray.stages.refine import CHECKPOINT
from ssat_ray.store import LEFTOVERS, RECORD, Job, Store

pytestmark = [pytest.mark.ray, pytest.mark.slow]

NUM_TRIALS = int(os.environ.get("SSAT_KILL_TRIALS", "20"))
NUM_IMAGES = int(os.environ.get("SSAT_KILL_IMAGES", "5000000"))
NUM_SHARDS = 50
SETTINGS = [
    f"synth.num_images={NUM_IMAGES}",
    f"synth.shard_rows={NUM_IMAGES // NUM_SHARDS}",
    "model={name: preact-small, widths: [8, 16], strides: [2, 2], blocks: 1}",
    "intermediate.num_steps=50",
    "cluster.k=50",
    "cluster.restarts=1",
    f"cluster.sample_rows={min(100_000, NUM_IMAGES // 10)}",
    f"cluster.refine_rows={NUM_IMAGES // 5}",
    "cluster.refine_iterations=40",
    "cluster.tolerance=0.0",
]
PLAN = build_plan(load_config("scale-100m", SETTINGS))
JOBS = {stage: job for (_, _, stage), job in PLAN.jobs.items()}
COMPARED = ("cluster", "score", "select")
EARLIEST, LATEST = 0.1, 0.9


@dataclass(frozen=True)
class Kill:
    """What to kill, and when.

    Args:
        stage: at work when the kill comes.
        process: in the name of the actors; None is the driver.
        refining: in the refinement, whose progress counts in iterations instead of shards.
    """

    stage: str
    process: str | None
    refining: bool = False


KILLS = {
    "embedding actor": Kill("cluster", "KeepActor"),
    "scoring actor": Kill("score", "ScoreActor"),
    "clustering actor": Kill("cluster", "ClusterActor", refining=True),
    "driver while embedding": Kill("cluster", None),
    "driver while scoring": Kill("score", None),
    "driver while refining": Kill("cluster", None, refining=True),
}


def start(cwd: Path) -> subprocess.Popen[bytes]:
    ssat = str(Path(sys.executable).with_name("ssat"))
    options = [argument for setting in SETTINGS for argument in ("--set", setting)]
    with open(cwd / "output.txt", "ab") as output:
        return subprocess.Popen(
            [ssat, "run", "scale-100m", "--name", "kill", *options],
            cwd=cwd,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def finish(process: subprocess.Popen[bytes], cwd: Path) -> None:
    code = process.wait(timeout=1800)
    assert code == 0, (cwd / "output.txt").read_text()[-3000:]


def checksums(store: Store) -> dict[str, str]:
    """SHA-256 of every file of the compared artefacts but what holds times and pids or is unfinished."""
    found = {}
    for stage in COMPARED:
        folder = store.folder(JOBS[stage])
        for path in sorted(folder.iterdir()):
            if path.name not in (RECORD, *LEFTOVERS) and path.suffix != ".tmp":
                name = f"{stage}/{path.name}"
                found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@dataclass(frozen=True)
class Oracle:
    """The undisturbed run."""

    store: Store
    checksums: dict[str, str]
    num_iterations: int


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    cwd = tmp_path_factory.mktemp("undisturbed")
    finish(start(cwd), cwd)
    store = Store(cwd / "store")
    about = json.loads((store.folder(JOBS["cluster"]) / "clusters.json").read_text())
    found = checksums(store)
    assert {"cluster/clusters.safetensors", "cluster/clusters.json"} <= set(found)
    assert {"select/selection.parquet", "select/shard-00000.parquet"} <= set(found)
    assert sum(name.startswith("score/scores-") for name in found) == NUM_SHARDS
    return Oracle(store, found, len(about["inertia_per_iteration"]))


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = os.environ.get("SSAT_KILL_LOG")
    path = Path(given) if given else tmp_path_factory.mktemp("log") / "kill-trials.jsonl"
    path.unlink(missing_ok=True)
    return path


def linked_store(folder: Path, oracle: Oracle, stages: set[str]) -> Store:
    """A fresh store in which the artefacts of some stages are those of the undisturbed run."""
    store = Store(folder)
    for job in PLAN.unique:
        if job.stage in stages:
            store.folder(job).parent.mkdir(parents=True, exist_ok=True)
            store.folder(job).symlink_to(oracle.store.folder(job), target_is_directory=True)
    return store


def notes(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in (folder / NOTES).glob("[0-9]*.json")]


def progress(kill: Kill, folder: Path, oracle: Oracle) -> tuple[int, int]:
    """Done and total: shards by the notes, or iterations by the checkpoint's history."""
    if not kill.refining:
        return sum(1 for _ in (folder / NOTES).glob("[0-9]*.json")), NUM_SHARDS
    with contextlib.suppress(FileNotFoundError), safe_open(folder / CHECKPOINT, "np") as file:
        return len(file.get_tensor("history")), oracle.num_iterations
    return 0, oracle.num_iterations


def victims(kill: Kill, driver: psutil.Process, worked: set[int]) -> list[psutil.Process]:
    """The processes of which one is to be killed: an actor of the stage that has done some of it."""
    if kill.process is None:
        return [driver]
    found = []
    for process in driver.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            named = kill.process in " ".join(process.cmdline())
            if named and (kill.refining or process.pid in worked):
                found.append(process)
    return sorted(found, key=lambda process: process.pid)


def workers(driver: psutil.Process) -> list[psutil.Process]:
    """All processes of the session but Ray's agents, which do no work and outlive it by a minute."""
    found = []
    for process in driver.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "Agent" not in process.cmdline()[0]:
                found.append(process)
    return found


def strike(
    kill: Kill, process: subprocess.Popen[bytes], store: Store, oracle: Oracle, rng: random.Random
) -> dict[str, Any]:
    """Wait for a random point of the stage, SIGKILL, and say what was hit and how far the stage was."""
    job, begun, driver = JOBS[kill.stage], time.perf_counter(), psutil.Process(process.pid)
    folder, share = store.folder(job), rng.uniform(0.12, 0.8)
    while True:
        assert process.poll() is None, f"the run ended before {kill} came"
        done, total = progress(kill, folder, oracle)
        if done >= share * total:
            worked = {note["pid"] for note in notes(folder)}
            targets = victims(kill, driver, worked)
            if targets:
                break
        time.sleep(0.01)
    victim = rng.choice(targets)
    session = workers(driver) if kill.process is None else [victim]
    done, total = progress(kill, folder, oracle)
    finished = score_files(folder)
    victim.kill()
    seconds = time.perf_counter() - begun
    if kill.process is None:
        process.wait()
    _, alive = psutil.wait_procs(session, timeout=60)
    assert not alive, f"alive 60 s after the kill of {victim.pid}: {alive}"
    assert store.record(job) is None, f"{kill.stage} had finished when the kill came"
    return {
        "stage": kill.stage,
        "pid": victim.pid,
        "unit": "iterations" if kill.refining else "shards",
        "done": done,
        "total": total,
        "seconds": round(seconds, 2),
        "worked": sorted(worked),
        "finished": finished,
    }


def score_files(folder: Path) -> dict[str, int]:
    """Name and inode of the score files whose parts are done: one that is written again gets another."""
    names = (f"scores-{path.stem}.parquet" for path in (folder / NOTES).glob("[0-9]*.json"))
    return {name: (folder / name).stat().st_ino for name in names if (folder / name).exists()}


@pytest.mark.parametrize("trial", range(NUM_TRIALS))
def test_a_kill_changes_no_byte(trial: int, oracle: Oracle, log: Path, tmp_path: Path) -> None:
    name = list(KILLS)[trial % len(KILLS)]
    kill = KILLS[name]
    kept = {"labelled", "intermediate", "synth"} | ({"cluster"} if kill.stage == "score" else set())
    store = linked_store(tmp_path / "store", oracle, kept)
    begun, process = time.perf_counter(), start(tmp_path)
    try:
        entry = strike(kill, process, store, oracle, random.Random(trial))
        if kill.process is None:
            process = start(tmp_path)
        finish(process, tmp_path)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    found = checksums(store)
    differing = sorted(
        file
        for file in found.keys() | oracle.checksums.keys()
        if found.get(file) != oracle.checksums.get(file)
    )
    entry |= {
        "trial": trial,
        "killed": name,
        "identical": not differing,
        "differing": differing[:10],
        "run_seconds": round(time.perf_counter() - begun, 1),
    }
    worked, finished = set(entry.pop("worked")), entry.pop("finished")
    with open(log, "a") as file:
        print(json.dumps(entry), file=file, flush=True)
    assert EARLIEST <= entry["done"] / entry["total"] <= LATEST, entry
    assert not differing, entry
    assert worked <= set(actor_pids(store, JOBS[kill.stage])), "finished shards were done again"
    assert bool(finished) == (kill.stage == "score")
    for file, inode in finished.items():
        path = store.folder(JOBS[kill.stage]) / file
        assert path.stat().st_ino == inode, f"{file} was written again"
    clear(tmp_path)


def actor_pids(store: Store, job: Job) -> list[int]:
    record = store.record(job)
    assert record is not None
    pids: list[int] = record["actor_pids"]
    return pids


def clear(cwd: Path) -> None:
    """Free the disk of a trial that ended well: the files of its artefacts."""
    for path in (cwd / "store").glob("*/*"):
        if not path.is_symlink() and path.is_dir():
            for file in path.glob("*.parquet"):
                file.unlink()


def test_all_trials_are_in_the_log(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    identical = sum(entry["identical"] for entry in entries)
    summary = f"{identical} of {NUM_TRIALS} trials identical, {NUM_IMAGES:,} images"
    with open(log, "a") as file:
        print(json.dumps({"summary": summary}), file=file)
    with capsys.disabled():
        print(f"\n{summary}; log: {log}")
    assert identical == NUM_TRIALS
    hit = {entry["killed"] for entry in entries}
    assert hit == set(list(KILLS)[:NUM_TRIALS]), "some kinds of kill were not tried"
