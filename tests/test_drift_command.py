"""`ssat drift` as a user runs it: 10 % more of the same distribution, then 10 % of a shifted one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssat_ray.config import DataConfig
from ssat_ray.data.labelled import read_labelled
from ssat_ray.data.synth import SynthSettings, SynthSource, synth

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SSAT = str(Path(sys.executable).with_name("ssat"))
ROWS, SHARD_ROWS, MORE = 20_000, 4000, 2000
CONFIG = """\
goal: selection
rows: [lcs-km]
model: {widths: [16, 32], strides: [2, 2]}
intermediate: {num_steps: 100}
pool: {source: external, path: pool}
cluster: {restarts: 3, refine_iterations: 3}
runtime: {train_workers: 1, actors: 2}
"""
SHIFTED = SynthSettings(blur=1)
"""Enough for a verdict on the shifted images alone, too little for one on them and as many clean ones."""


def _ssat(cwd: Path, *arguments: str, expected: int = 0) -> str:
    command = [SSAT, *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600)
    assert done.returncode == expected, done.stdout + done.stderr
    return done.stdout


def _append(cwd: Path, first: int, settings: SynthSettings) -> None:
    _write(cwd / "more.npz", first, MORE, settings)
    _ssat(cwd, "pool", "append", "more.npz", "pool")


def _write(path: Path, first: int, rows: int, settings: SynthSettings) -> None:
    source = SynthSource(*read_labelled(DataConfig()).splits["labelled"])
    images, labels = synth(source, np.arange(first, first + rows), seed=7, settings=settings)
    np.savez(path, image=images, label=labels)


def _drift(cwd: Path, expected: int) -> dict[str, Any]:
    """What `ssat drift` found, having scored the appended shard and no other."""
    before = _tables(cwd)
    said = _ssat(cwd, "drift", "mine.yaml", "--json", "drift.json", expected=expected)
    assert "1 shard scored" in said
    after = _tables(cwd)
    assert len(after) == len(before) + 1 and before.items() <= after.items()
    found: dict[str, Any] = json.loads((cwd / "drift.json").read_text())
    assert found["shards_scored"] == 1
    return found


def _tables(cwd: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in cwd.glob("store/score/*/*.parquet")}


def test_shifted_images_are_flagged_and_others_are_not(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    (first / "mine.yaml").write_text(CONFIG)
    _write(first / "images.npz", 0, ROWS, SynthSettings())
    _ssat(first, "pool", "import", "images.npz", "pool", "--shard-rows", str(SHARD_ROWS))
    _ssat(first, "score", "mine.yaml")
    assert len(_tables(first)) == ROWS // SHARD_ROWS
    shutil.copytree(first, second)

    _append(first, ROWS, SHIFTED)
    found = _drift(first, expected=3)
    assert found["status"] == "re-cluster" and found["advice"].endswith(
        "ssat run mine.yaml --set pool.cluster_generations=2"
    )

    said = _ssat(first, "drift", "mine.yaml", "--set", "runtime.log_format=json", expected=3)
    events = [json.loads(line) for line in said.splitlines()]
    assert [line["event"] for line in events] == ["starting", "planned", "finished", "drift"]
    again = events[-1]["result"]
    assert again == {**found, "shards_scored": 0, "advice": again["advice"]}

    _append(second, ROWS, SynthSettings())
    assert _drift(second, expected=0)["status"] == "stable"
    _append(second, ROWS + MORE, SHIFTED)
    found = _drift(second, expected=3)
    assert found["status"] == "re-cluster" and "pool.cluster_generations=3" in found["advice"]
    (method,) = found["methods"]
    judged = [batch["judgement"]["status"] for batch in method["generations"]]
    assert judged == ["stable", "re-cluster"]
