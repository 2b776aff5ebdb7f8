"""SIGKILL of a sampling actor and of the driver at random points, and other numbers of actors: the same bytes.

`SSAT_KILL_TRIALS` sets how many trials; `SSAT_KILL_LOG` names the file that says of each what was killed and
how far it was.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from ssat_ray.data.pool import MANIFEST
from ssat_ray.stages.parts import NOTES

if TYPE_CHECKING:
    from tests.stages.conftest import StageRun

pytestmark = [pytest.mark.ray, pytest.mark.slow]

NUM_TRIALS = int(os.environ.get("SSAT_KILL_TRIALS", "20"))
NUM_SHARDS = 40
PRESET = f"""\
rows: [full]
pretrain: {{channels: [16, 32], norm_num_groups: 4, num_steps: 20, batch_size: 64}}
generate: {{num_images: {NUM_SHARDS * 100 - 30}, shard_rows: 100, num_inference_steps: 40}}
runtime: {{actors: ACTORS}}
"""
EARLIEST, LATEST = 0.1, 0.9


def generate(kind: type[StageRun], cwd: Path, actors: int = 2) -> StageRun:
    (cwd / "preset.yaml").write_text(PRESET.replace("ACTORS", str(actors)))
    return kind(cwd, "generate", name="pool")


@pytest.fixture(scope="module")
def oracle(stage_run: type[StageRun], tmp_path_factory: pytest.TempPathFactory) -> StageRun:
    run = generate(stage_run, tmp_path_factory.mktemp("undisturbed"))
    run.finish(run.start())
    found = run.files()
    assert MANIFEST in found and len(found) == NUM_SHARDS + 1
    assert len(run.record["actor_pids"]) == 2
    return run


def without_pool(oracle: StageRun, run: StageRun) -> None:
    """Give a run all that the undisturbed one has but its pool."""
    shutil.copytree(oracle.cwd / "store", run.cwd / "store", copy_function=os.link)
    shutil.rmtree(run.folder)


def test_one_actor_makes_the_same_bytes(
    oracle: StageRun, stage_run: type[StageRun], tmp_path: Path
) -> None:
    run = generate(stage_run, tmp_path, actors=1)
    without_pool(oracle, run)
    run.finish(run.start())
    assert len(run.record["actor_pids"]) == 1
    assert run.files() == oracle.files()


STEERED = """\
rows: [lcg-km]
pretrain: {channels: [16, 32], norm_num_groups: 4, num_steps: 20, batch_size: 64}
model: {widths: [16, 32], strides: [2, 2]}
intermediate: {num_steps: 20, batch_size: 64, bn_group: 32}
generate: {num_images: 2000, shard_rows: 50, num_inference_steps: 20, guidance: 2.0}
select: {ratio: 1.0}
runtime: {actors: ACTORS}
"""
OTHERS = {
    "ancestral": (
        PRESET.replace("generate: {", "generate: {sampler: ancestral, "),
        "generate",
        "full",
        "pool",
    ),
    "steered": (STEERED, "quality", "lcg-km", "guided"),
}
"""Preset, verb, row and job of images that take a second stream of noise, and gradients at every step."""


@pytest.mark.parametrize("way", OTHERS)
def test_one_actor_makes_the_same_bytes_in_other_ways(
    stage_run: type[StageRun], tmp_path: Path, way: str
) -> None:
    preset, verb, row, name = OTHERS[way]
    runs: list[StageRun] = []
    for actors in (2, 1):
        run = stage_run(tmp_path / str(actors), verb, row, name)
        run.cwd.mkdir()
        (run.cwd / "preset.yaml").write_text(preset.replace("ACTORS", str(actors)))
        for other in runs:
            without_pool(other, run)
        run.finish(run.start())
        assert len(run.record["actor_pids"]) == actors
        runs.append(run)
    two, one = (run.files() for run in runs)
    assert one == two and len(two) == runs[0].record["blocks"] + 1 > 10


def notes(run: StageRun) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in (run.folder / NOTES).glob("[0-9]*.json")]


@pytest.mark.parametrize("trial", range(NUM_TRIALS))
def test_a_kill_changes_no_byte(
    oracle: StageRun, stage_run: type[StageRun], tmp_path: Path, trial: int
) -> None:
    rng, victim = random.Random(trial), ("actor", "driver")[trial % 2]
    run = generate(stage_run, tmp_path)
    without_pool(oracle, run)
    process = run.start()
    share = rng.uniform(0.12, 0.8)
    run.wait_for(process, lambda: len(notes(run)) >= share * NUM_SHARDS)
    before = notes(run)
    shards = {note["shard"]["file"]: run.folder / note["shard"]["file"] for note in before}
    inodes = {name: path.stat().st_ino for name, path in shards.items()}
    worked = sorted({note["pid"] for note in before})
    if victim == "actor":
        pid = rng.choice(worked)
        assert psutil.pid_exists(pid)
        os.kill(pid, signal.SIGKILL)
    else:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process = run.start()
    run.finish(process)
    assert EARLIEST <= len(before) / NUM_SHARDS <= LATEST
    assert run.files() == oracle.files()
    for name, inode in inodes.items():
        assert shards[name].stat().st_ino == inode, f"{name} was made again"
    if log := os.environ.get("SSAT_KILL_LOG"):
        with open(log, "a", encoding="utf-8") as file:
            line = {"trial": trial, "killed": victim, "done": len(before), "of": NUM_SHARDS}
            file.write(json.dumps(line) + "\n")
