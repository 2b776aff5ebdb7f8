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
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from ssat_ray.loading import load_config
from ssat_ray.models.files import WEIGHTS
from ssat_ray.plan import build_plan
from ssat_ray.store import Store

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
train: {{max_steps: {NUM_STEPS * 4 // 5}, eval_every: 100, patience: 99, batch_size: 64, bn_group: 32}}
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


def train(cwd: Path) -> subprocess.Popen[bytes]:
    ssat = str(Path(sys.executable).with_name("ssat"))
    with open(cwd / "output.txt", "ab") as output:
        return subprocess.Popen(
            [ssat, "train", "preset.yaml"],
            cwd=cwd,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def finish(process: subprocess.Popen[bytes], cwd: Path) -> None:
    code = process.wait(timeout=900)
    assert code == 0, (cwd / "output.txt").read_text()[-3000:]


def job_folder(cwd: Path) -> Path:
    plan = build_plan(load_config(str(cwd / "preset.yaml"), []))
    return Store(cwd / "store").folder(plan.jobs["full", 0, "train"])


def ended(cwd: Path) -> tuple[bytes, list[dict[str, float]]]:
    """The weights' file, and the history without its seconds."""
    record = json.loads((job_folder(cwd) / "stage.json").read_text())
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in record["history"]]
    return (job_folder(cwd) / WEIGHTS).read_bytes(), rows


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    cwd = tmp_path_factory.mktemp("undisturbed")
    (cwd / "preset.yaml").write_text(PRESET)
    finish(train(cwd), cwd)
    weights, history = ended(cwd)
    assert len(load_file(job_folder(cwd) / WEIGHTS)) > 10 and len(history) > 4
    return Oracle(cwd, weights, history)


def saved_step(folder: Path) -> int:
    """Steps in the newest saved state; 0 without one."""
    return max((int(path.stem) for path in (folder / "state").glob("*.pt")), default=0)


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
def test_a_kill_changes_no_bit(oracle: Oracle, tmp_path: Path, trial: int) -> None:
    rng = random.Random(trial)
    victim = ("worker", "driver")[trial % 2]
    target = rng.randint(1, int(LATEST * NUM_STEPS))
    shutil.copy(oracle.cwd / "preset.yaml", tmp_path)
    shutil.copytree(oracle.cwd / "store", tmp_path / "store", copy_function=os.link)
    folder = job_folder(tmp_path)
    shutil.rmtree(folder)
    process = train(tmp_path)
    while saved_step(folder) < target:
        assert process.poll() is None, (tmp_path / "output.txt").read_text()[-3000:]
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.5))  # anywhere between two states, or while one is written
    at = saved_step(folder)
    assert not (folder / "stage.json").exists(), "it had ended when the kill came"
    if victim == "worker":
        workers = workers_of(process.pid)
        assert len(workers) == 2
        rng.choice(workers).send_signal(signal.SIGKILL)
    else:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process = train(tmp_path)
    finish(process, tmp_path)
    weights, history = ended(tmp_path)
    assert weights == oracle.weights and history == oracle.history
    if log := os.environ.get("SSAT_KILL_LOG"):
        with open(log, "a", encoding="utf-8") as file:
            line = {"trial": trial, "killed": victim, "saved_step": at, "of": NUM_STEPS}
            file.write(json.dumps(line) + "\n")
