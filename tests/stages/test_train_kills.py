"""SIGKILL of DDP workers and of the driver at random steps: the final weights are the same to the bit.

`SSAT_KILL_TRIALS` sets how many trials of each case, `SSAT_KILL_CASE` one case; `SSAT_KILL_LOG` names the
file that says of each trial what was killed and between which steps.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

if TYPE_CHECKING:
    from tests.stages.conftest import StageRun

pytestmark = [pytest.mark.ray, pytest.mark.slow]

NUM_STEPS = 500
SHARED = """\
model: {widths: [16, 32], strides: [2, 2]}
intermediate: {num_steps: 20, batch_size: 64, bn_group: 32}
runtime: {checkpoint_minutes: 0.01}
"""
TRAIN = f"""\
rows: [full]
pool: {{source: synth}}
synth: {{num_images: 2000}}
objective: {{num_steps: 3, step_size: 0.1}}
train: {{max_steps: {NUM_STEPS * 4 // 5}, eval_every: 100, patience: 99, batch_size: 64, bn_group: 32, window_mib: WINDOW}}
evaluate: {{pgd_steps: 3, apgd_steps: 3}}
"""
FINETUNE = f"""\
rows: [lcg-km]
pretrain: {{channels: [16, 32], norm_num_groups: 4, num_steps: 20, batch_size: 64}}
generate: {{num_images: 400, shard_rows: 100, num_inference_steps: 5}}
select: {{ratio: 0.5}}
finetune: {{num_steps: {NUM_STEPS}, batch_size: 64, anchor: 0.1}}
"""
LATEST = 0.9


@dataclass(frozen=True)
class Case:
    """A stage that trains: its preset, row and weights' file, and how many trials."""

    stage: str
    preset: str
    row: str
    weights: str
    trials: int


CLASSIFIER, UNET = "model.safetensors", "unet/diffusion_pytorch_model.safetensors"
CASES = {
    "in memory": Case("train", TRAIN.replace("WINDOW", "64") + SHARED, "full", CLASSIFIER, 14),
    "streamed": Case("train", TRAIN.replace("WINDOW", "0.04") + SHARED, "full", CLASSIFIER, 6),
    "finetune": Case("finetune", FINETUNE + SHARED, "lcg-km", UNET, 10),
}
WANTED = os.environ.get("SSAT_KILL_CASE")
TRIALS = [
    (name, trial)
    for name, case in CASES.items()
    if WANTED in (None, name)
    for trial in range(int(os.environ.get("SSAT_KILL_TRIALS", case.trials)))
]


@pytest.fixture(scope="module")
def oracles() -> dict[str, StageRun]:
    """The undisturbed runs that there are so far."""
    return {}


def undisturbed(case: Case, kind: type[StageRun], folder: Path) -> StageRun:
    run = kind(folder, case.stage, case.row)
    (run.cwd / "preset.yaml").write_text(case.preset)
    run.finish(run.start())
    assert len(run.files()[case.weights]) > 10_000 and len(run.history()) > 4
    assert run.record["steps"] == NUM_STEPS and run.record["world_size"] == 2
    return run


def workers_of(driver: int) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(driver).children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:  # ended meanwhile
            continue
    return found


@pytest.mark.parametrize(("name", "trial"), TRIALS)
def test_a_kill_changes_no_bit(
    oracles: dict[str, StageRun],
    stage_run: type[StageRun],
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    trial: int,
) -> None:
    if name not in oracles:
        oracles[name] = undisturbed(CASES[name], stage_run, tmp_path_factory.mktemp("undisturbed"))
    oracle, rng = oracles[name], random.Random(trial)
    victim = ("worker", "driver")[trial % 2]
    target = rng.randint(1, int(LATEST * NUM_STEPS))
    run = stage_run(tmp_path_factory.mktemp("killed"), oracle.verb, oracle.row)
    shutil.copy(oracle.cwd / "preset.yaml", run.cwd)
    shutil.copytree(oracle.cwd / "store", run.cwd / "store", copy_function=os.link)
    shutil.rmtree(run.folder)
    process = run.start()
    run.wait_for(process, lambda: run.saved_step >= target)
    time.sleep(rng.uniform(0, 0.5))  # anywhere between two states, or while one is written
    at = run.saved_step
    assert not (run.folder / "stage.json").exists(), "it had ended when the kill came"
    if victim == "worker":
        workers = workers_of(process.pid)
        assert len(workers) == 2
        rng.choice(workers).send_signal(signal.SIGKILL)
    else:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process = run.start()
    run.finish(process)
    assert oracle.record["resumed_step"] == 0
    assert at <= run.record["resumed_step"] < NUM_STEPS, "it went on, it did not start again"
    assert run.files() == oracle.files()
    assert run.history() == [pytest.approx(row, rel=1e-6) for row in oracle.history()]
    if log := os.environ.get("SSAT_KILL_LOG"):
        with open(log, "a", encoding="utf-8") as file:
            about = {"case": name, "trial": trial, "killed": victim}
            file.write(json.dumps({**about, "saved_step": at, "of": NUM_STEPS}) + "\n")
