"""`ssat drift` as a user runs it: append the same distribution, then a shifted one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ssat_ray.config import DataConfig
from ssat_ray.data.labelled import read_labelled
from ssat_ray.data.pool import MANIFEST, Pool, Shard, ShardEntry, manifest, write_shard
from ssat_ray.data.synth import SynthSettings, SynthSource, synth

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SSAT = str(Path(sys.executable).with_name("ssat"))
SHARDS, ROWS = 3, 2000
CONFIG = """\
goal: selection
rows: [lcs-km]
model: {widths: [16, 32], strides: [2, 2]}
intermediate: {num_steps: 100}
pool: {source: external, path: pool}
cluster: {restarts: 3, refine_iterations: 3}
runtime: {train_workers: 1, actors: 2}
"""


def _append(folder: Path, settings: SynthSettings) -> None:
    """A generation more: its shards, then the manifest of all."""
    source = SynthSource(*read_labelled(DataConfig()).splits["labelled"])
    generations: list[list[ShardEntry]] = []
    if (folder / MANIFEST).exists():
        generations = Pool(folder).generations
    first = sum(map(len, generations))
    added = []
    for shard in range(first, first + SHARDS):
        ids = np.arange(shard * ROWS, (shard + 1) * ROWS)
        images, labels = synth(source, ids, seed=7, settings=settings)
        added.append(write_shard(folder, shard, Shard(ids, images, labels)))
    (folder / MANIFEST).write_text(manifest([*generations, added], (1, 8, 8), 10))


def _ssat(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [SSAT, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600)


def _tables(cwd: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in cwd.glob("store/score/*/*.parquet")}


def test_appended_shards_are_scored_alone_and_judged(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(CONFIG)
    (tmp_path / "pool").mkdir()
    _append(tmp_path / "pool", SynthSettings())
    done = _ssat(tmp_path, "score", "mine.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    before = _tables(tmp_path)
    assert len(before) == SHARDS

    _append(tmp_path / "pool", SynthSettings())
    done = _ssat(tmp_path, "drift", "mine.yaml", "--json", "drift.json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{SHARDS} shards scored" in done.stdout
    after = _tables(tmp_path)
    assert len(after) == 2 * SHARDS and before.items() <= after.items()
    content = json.loads((tmp_path / "drift.json").read_text())
    assert (content["status"], content["shards_scored"]) == ("stable", SHARDS)

    _append(tmp_path / "pool", SynthSettings(invert=True))
    done = _ssat(tmp_path, "drift", "mine.yaml")
    assert done.returncode == 3, done.stdout + done.stderr
    assert "pool.cluster_generations=3" in done.stdout
    assert len(_tables(tmp_path)) == 3 * SHARDS and after.items() <= _tables(tmp_path).items()
