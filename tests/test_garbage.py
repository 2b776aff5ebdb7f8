"""Garbage collection beside runs that start meanwhile, and in a bucket; what it keeps and removes is in test_store.py."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ssat_ray import garbage
from ssat_ray.errors import UserError
from ssat_ray.garbage import collect_garbage
from ssat_ray.leases import lease_of
from ssat_ray.places import Place, folder_bytes, place, write_atomic
from ssat_ray.store import LEFTOVERS, Job, Store

JOBS = [Job("train", 1, {"seed": seed}, {}) for seed in range(3)]


def artefact(store: Store, job: Job) -> Place:
    """A published one that is two hours old, where the file system lets that be said."""
    folder = store.folder(job)
    write_atomic(folder / "parts" / "data.bin", b"x" * 100)
    store.publish(job, {})
    if isinstance(folder, Path):
        os.utime(folder, (time.time() - 7200,) * 2)
    return folder


def start_run(runs: Place, *jobs: Job) -> None:
    """What a run does first."""
    write_atomic(runs / "new" / "run.json", json.dumps({"digests": [job.digest for job in jobs]}))


def after(
    monkeypatch: pytest.MonkeyPatch, name: str, calls: int, act: Callable[[], object]
) -> None:
    """Have something happen right after a function of the module has ended for the so many-th time."""
    function, left = getattr(garbage, name), [None] * calls

    def then(*arguments: Any) -> Any:
        found = function(*arguments)
        if left:
            left.pop()
            if not left:
                act()
        return found

    monkeypatch.setattr(garbage, name, then)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.mark.parametrize("moment", ["folder_bytes", "_unpublish"])
def test_what_a_starting_run_names_is_kept_and_readable(
    moment: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run starts between the first look at the runs and the removal."""
    named, orphan = (artefact(store, job) for job in JOBS[:2])
    record = store.record(JOBS[0])
    size = folder_bytes(orphan)
    after(monkeypatch, moment, 1, lambda: start_run(tmp_path / "runs", JOBS[0]))
    assert collect_garbage(store, tmp_path / "runs") == ([orphan], size)
    assert not orphan.exists()
    assert store.record(JOBS[0]) == record and (named / "parts" / "data.bin").exists()


@pytest.mark.parametrize(("moment", "calls"), [("folder_bytes", 1), ("_named", 3)])
def test_what_is_leased_meanwhile_is_kept(
    moment: str, calls: int, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the end a run that found it unpublished computes it, and has not published it yet."""
    folder = artefact(store, JOBS[0])
    lease = lease_of(folder / "lease.json")
    after(monkeypatch, moment, calls, lease.acquire)
    assert collect_garbage(store, tmp_path / "runs") == ([], 0)
    assert (folder / "parts" / "data.bin").exists() and lease_of(lease.path).held_by_other()
    lease.release()


def test_runs_that_cannot_be_read_a_second_time_cost_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artefact(store, JOBS[0])
    damaged = tmp_path / "runs" / "new" / "run.json"
    after(monkeypatch, "_unpublish", 1, lambda: write_atomic(damaged, "{"))
    with pytest.raises(UserError, match="damaged"):
        collect_garbage(store, tmp_path / "runs")
    assert store.record(JOBS[0]) is not None


def contents(s3: Any, bucket: str) -> dict[str, Any]:
    return {k: s3.client.head_object(Bucket=bucket, Key=k)["ETag"] for k in s3.keys(bucket)}


def test_in_a_bucket(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = s3.bucket()
    store, runs = Store(s3.uri(f"{bucket}/store")), place(s3.uri(f"{bucket}/runs"))
    named, orphan, held = (artefact(store, job) for job in JOBS)
    start_run(runs, JOBS[0])
    dead = lease_of(orphan / "lease.json")
    expired = json.loads(dead._content(held=True, expires=0.0))
    write_atomic(orphan / "lease.json" / "dead.json", json.dumps(expired))
    lease = lease_of(held / "lease.json", 60.0)
    assert lease.acquire()
    before = contents(s3, bucket)

    found, size = collect_garbage(store, runs, dry_run=True, min_age=-60.0)
    assert found == [orphan] and size > 200
    assert contents(s3, bucket) == before, "a dry run writes nothing, and removes nothing"

    assert collect_garbage(store, runs, min_age=-60.0) == (found, size)
    assert not [key for key in s3.keys(bucket) if orphan.name in key]
    assert store.record(JOBS[0]) is not None and store.record(JOBS[2]) is not None
    assert {key for key in s3.keys(bucket) if named.name in key} == {
        f"store/train/{named.name}/stage.json"
    }, f"of {LEFTOVERS} nothing stays in a published artefact"
    lease.release()
