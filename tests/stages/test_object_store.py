"""Store, runs and pool in a bucket of an S3-protocol server: the same artefacts as on a local disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ssat_ray import pipeline, runtime
from ssat_ray.board import start_board
from ssat_ray.config import RuntimeConfig
from ssat_ray.loading import load_config
from ssat_ray.places import CACHE, Place, place, write_atomic
from ssat_ray.plan import build_plan
from ssat_ray.stages.base import StageContext
from ssat_ray.store import Store
from tests.artefacts import files

pytestmark = [pytest.mark.ray, pytest.mark.slow]
CANARY = "canary-7d0c5a6e2b"
"""A secret, which must be in nothing that a run writes: logs, artefacts, report, MLflow."""


@pytest.fixture
def bucket(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new bucket, and a node cache of the test's own."""
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    found: str = s3.bucket()
    return found


@pytest.fixture
def ray_session(bucket: str) -> Iterator[None]:
    """Ray in this process, started when the credentials are in its environment."""
    with runtime.ray_session(RuntimeConfig(num_cpus=2)):
        board = start_board()
        yield
        del board


def upload(source: Path, target: Place) -> None:
    for path in (p for p in source.rglob("*") if p.is_file()):
        write_atomic(target / path.relative_to(source).as_posix(), path.read_bytes())


def test_a_selection(
    selections: Any, s3: Any, bucket: str, ray_session: None, tmp_path: Path
) -> None:
    """Pool, embeddings, state of the refinement, score tables and images chosen: all in the bucket."""
    pool = selections.pool(tmp_path / "pool", 10_000, 2_500)
    settings = ["rows=[lcs-km, lcs-gmm]", "cluster.sample_rows=2000", "cluster.restarts=2"]
    local = selections.selection(tmp_path / "local", pool, *settings)
    local.execute()
    upload(pool, place(s3.uri(f"{bucket}/pool")))
    remote = selections.selection(s3.uri(f"{bucket}/store"), s3.uri(f"{bucket}/pool"), *settings)
    remote.execute()
    for row in ("lcs-km", "lcs-gmm"):
        for stage in ("cluster", "score", "select"):
            expected = files(local.folder(row, stage))
            assert expected and files(remote.folder(row, stage)) == expected, (row, stage)
    keys = s3.keys(bucket)
    assert not [key for key in keys if "/parts/" in key or "lease.json" in key]


def test_a_whole_run(
    s3: Any, bucket: str, tiny_preset: Path, tiny_run: Any, tmp_path: Path
) -> None:
    """Three rows by `ssat run` are the same bytes; a second command has nothing to do, `ssat gc` nothing to remove."""
    rows = "rows=[random, lcs-km, lcg-km]"
    store, runs = s3.uri(f"{bucket}/store"), s3.uri(f"{bucket}/runs")
    command = [
        sys.executable,
        "-m",
        "ssat_ray",
        "run",
        str(tiny_preset),
        "--name",
        "tiny",
        "--set",
        rows,
    ]
    sets = {"store": store, "runs": runs, "tracking_uri": f"sqlite:///{tmp_path}/mlflow.db"}
    for key, value in sets.items():
        command += ["--set", f"runtime.{key}='{value}'"]
    work = tmp_path / "work"
    work.mkdir()
    secrets = (
        "AWS_SECRET_ACCESS_KEY",
        "MLFLOW_TRACKING_PASSWORD",
        "MLFLOW_TRACKING_TOKEN",
        "HF_TOKEN",
    )
    done = subprocess.run(
        command,
        cwd=work,
        env=os.environ | dict.fromkeys(secrets, CANARY),
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    written = [(tmp_path / "mlflow.db").read_bytes()]
    written += [p.read_bytes() for p in work.rglob("*") if p.is_file()]
    written += [
        s3.client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in s3.keys(bucket)
    ]
    assert len(written) > 40 and not any(CANARY.encode() in content for content in written)
    assert CANARY not in done.stdout + done.stderr
    assert os.listdir(work) in ([], ["mlruns"])
    found = Store(store)
    for job in build_plan(load_config(str(tiny_preset), [rows])).unique:
        if job.stage == "report":
            continue
        expected = files(tiny_run.store.folder(job))
        assert files(found.folder(job)) == expected, job.label
    folder = place(runs) / "tiny"
    names = {path.name for path in folder.iterdir()}
    assert {
        "run.json",
        "results.json",
        "report.html",
        "results.md",
        "run.log",
        "memory.jsonl",
    } <= names
    ours = json.loads((folder / "results.json").read_text())["rows"]
    assert [row["row"] for row in ours] == ["random", "lcs-km", "lcg-km"]
    assert [row["accuracy"] for row in ours] == [
        tiny_run.row(row["row"])["accuracy"] for row in ours
    ]
    again = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=300)
    unique = build_plan(load_config(str(tiny_preset), [rows])).unique
    assert again.returncode == 0, again.stdout
    assert f"up to date ({len(unique)} artefacts)" in again.stdout, again.stdout
    collected = subprocess.run(
        [sys.executable, "-m", "ssat_ray", "gc", "--store", store, "--runs", runs, "--min-age", "0"],
        cwd=work, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert "removed 0 artefacts" in collected.stdout, collected.stdout + collected.stderr


def test_two_processes_compute_a_stage_once(
    s3: Any, bucket: str, ray_session: None, tmp_path: Path
) -> None:
    """While somebody elsewhere holds a job's lease, it is waited for."""
    config = load_config("digits", ["rows=[full]"])
    store, plan = Store(s3.uri(f"{bucket}/store")), build_plan(config)
    job = next(job for job in plan.unique if job.stage == "labelled")
    waited: list[str] = []

    class Waits(pipeline.Watcher):
        def waiting(self, job: Any) -> None:
            waited.append(job.label)
            holder.__exit__(None, None, None)

    holder = store.lease(job)
    assert holder.__enter__()
    pipeline.execute([job], StageContext(store, config.runtime), Waits())
    assert waited == [job.label] and store.record(job) is not None
