"""Folders of runs that computed nothing: only old ones, with logs alone, and never one at work."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from ssat_ray.abandoned import DAY, abandoned_runs
from ssat_ray.places import write_atomic
from ssat_ray.store import Job, Store

JOB = Job("train", 1, {"seed": 0}, {})
LABELLED = Job("labelled", 1, {}, {})


def _run(
    runs: Path,
    name: str,
    *jobs: Job,
    days: float = 2.0,
    more: tuple[str, ...] = (),
    store: str = "store",
) -> Path:
    folder = runs / name
    content = {
        "config": {"runtime": {"store": str(runs.parent / store)}},
        "digests": [job.digest for job in jobs],
    }
    write_atomic(folder / "run.json", json.dumps(content))
    for file in ("run.log", "memory.jsonl", *more):
        (folder / file).write_text("")
    _age(folder, days)
    return folder


def _age(folder: Path, days: float) -> None:
    when = time.time() - days * DAY
    for path in (*folder.iterdir(), folder):
        os.utime(path, (when, when))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_a_failed_run_is_abandoned_after_a_day(tmp_path: Path, store: Store) -> None:
    runs = tmp_path / "runs"
    old = _run(runs, "old", JOB, LABELLED)
    _run(runs, "young", JOB, days=0.9)
    assert abandoned_runs(runs, store) == [old]
    assert abandoned_runs(runs, store, min_age=3 * DAY) == []


def test_a_run_that_failed_before_its_plan_stood_has_a_log_alone(
    tmp_path: Path, store: Store
) -> None:
    folder = tmp_path / "runs" / "old"
    folder.mkdir(parents=True)
    (folder / "run.log").write_text("")
    _age(folder, 2)
    assert abandoned_runs(tmp_path / "runs", store) == [folder]


def test_one_file_that_is_written_keeps_the_folder(tmp_path: Path, store: Store) -> None:
    folder = _run(tmp_path / "runs", "running", JOB)
    os.utime(folder / "memory.jsonl")
    assert abandoned_runs(tmp_path / "runs", store) == []


@pytest.mark.parametrize("file", ["results.json", "report.html", "notes.txt", "mlflow.json"])
def test_a_folder_with_any_other_file_stays(file: str, tmp_path: Path, store: Store) -> None:
    _run(tmp_path / "runs", "one", JOB, more=(file,))
    assert abandoned_runs(tmp_path / "runs", store) == []


def test_folders_that_are_no_runs_stay(tmp_path: Path, store: Store) -> None:
    runs = tmp_path / "runs"
    empty, elsewhere = runs / "empty", _run(tmp_path / "elsewhere", "one", JOB)
    empty.mkdir(parents=True)
    _age(empty, 2)
    (runs / "link").symlink_to(elsewhere)
    (runs / "file").write_text("")
    assert abandoned_runs(runs, store) == []


def test_a_run_on_another_store_stays(tmp_path: Path, store: Store) -> None:
    """Its work lies there, where nobody looks."""
    _run(tmp_path / "runs", "one", JOB, store="other")
    assert abandoned_runs(tmp_path / "runs", store) == []


def test_work_in_the_store_keeps_the_run(tmp_path: Path, store: Store) -> None:
    """A killed run goes on from it, and without its run `ssat gc` would remove it."""
    folder = _run(tmp_path / "runs", "killed", JOB, LABELLED)
    write_atomic(store.folder(LABELLED) / "labelled.safetensors", "x")
    (store.folder(JOB) / "parts").mkdir(parents=True)
    assert abandoned_runs(tmp_path / "runs", store) == [folder]
    write_atomic(store.folder(JOB) / "parts" / "00000.json", "{}")
    assert abandoned_runs(tmp_path / "runs", store) == []


@pytest.mark.parametrize("job", [JOB, LABELLED])
def test_a_lease_of_a_live_process_keeps_the_run(job: Job, tmp_path: Path, store: Store) -> None:
    folder = _run(tmp_path / "runs", "one", job)
    with store.lease(job) as mine:
        assert mine and abandoned_runs(tmp_path / "runs", store) == []
    assert abandoned_runs(tmp_path / "runs", store) == [folder]
