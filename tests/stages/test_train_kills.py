"""SIGKILL of DDP workers and of the driver at random steps: the final weights are the same to the bit.

`SSAT_KILL_TRIALS` sets how many trials; `SSAT_KILL_LOG` names the file that says of each trial what was
killed and between which steps.
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
from safetensors.torch import load_file

from ssat_ray.models.files import WEIGHTS

if TYPE_CHECKING:
    from tests.stages.conftest import TrainRun

pytestmark = [pytest.mark.ray, pytest.mark.slow]

NUM_TRIALS = int(os.environ.get("SSAT_KILL_TRIALS", "20"))
NUM_STEPS = 500
PRESET = f"""\
rows: [full]
model: {{widths: [16, 32], strides: [2, 2]}}
intermediate: {{num_steps: 20, batch_size: 64, bn_group: 32}}
pool: {{source: synth}}
synth: {{num_images: 2000}}
objective: {{num_steps: 3, step_size: 0.1}}
train: {{max_steps: {NUM_STEPS * 4 // 5}, eval_every: 100, patience: 99, batch_size: 64, bn_group: 32, window_mib: 0.04}}
evaluate: {{pgd_steps: 3, apgd_steps: 3}}
runtime: {{checkpoint_minutes: 0.01}}
"""
LATEST = 0.9


@dataclass(frozen=True)
class Oracle:
    """The undisturbed run: its folder, and what every trial must end with."""

    cwd: Path
    weights: bytes
    history: list[dict[str, float]]


@pytest.fixture(scope="module")
def oracle(train_run: type[TrainRun], tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    run = train_run(tmp_path_factory.mktemp("undisturbed"))
    (run.cwd / "preset.yaml").write_text(PRESET)
    run.finish(run.start())
    weights, history = run.ended()
    assert len(load_file(run.folder / WEIGHTS)) > 10 and len(history) > 4
    return Oracle(run.cwd, weights, history)


def workers_of(driver: int) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(driver).children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:  # ended meanwhile
            continue
    return found


@pytest.mark.parametrize("trial", range(NUM_TRIALS))
def test_a_kill_changes_no_bit(
    oracle: Oracle, train_run: type[TrainRun], tmp_path: Path, trial: int
) -> None:
    rng = random.Random(trial)
    victim = ("worker", "driver")[trial % 2]
    target = rng.randint(1, int(LATEST * NUM_STEPS))
    run = train_run(tmp_path)
    shutil.copy(oracle.cwd / "preset.yaml", tmp_path)
    shutil.copytree(oracle.cwd / "store", tmp_path / "store", copy_function=os.link)
    shutil.rmtree(run.folder)
    process = run.start()
    run.wait_for_state(process, target)
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
    assert run.ended() == (oracle.weights, oracle.history)
    if log := os.environ.get("SSAT_KILL_LOG"):
        with open(log, "a", encoding="utf-8") as file:
            line = {"trial": trial, "killed": victim, "saved_step": at, "of": NUM_STEPS}
            file.write(json.dumps(line) + "\n")
