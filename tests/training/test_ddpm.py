"""DDPM training: one step's loss by hand, learning, and resuming to the same bits."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ssat_ray.config import DataConfig, PretrainConfig
from ssat_ray.data.batches import epoch_indices, generator
from ssat_ray.data.labelled import read_labelled
from ssat_ray.diffusion.noise import build_scheduler
from ssat_ray.models.unet import build_unet
from ssat_ray.training.ddpm import DDPMTask, train_ddpm
from ssat_ray.training.state import States
from ssat_ray.training.world import World

DIGITS = read_labelled(DataConfig(num_test=900, num_labelled=100, num_validation=60))


class Killed(Exception):
    """Stands for a kill at a moment of the test's choosing."""


def _config(**changes: object) -> PretrainConfig:
    options = {
        "channels": (8,),
        "norm_num_groups": 2,
        "num_timesteps": 100,
        "num_steps": 100,
        "batch_size": 16,
        "warmup_steps": 5,
        "lr": 5e-3,
    }
    return PretrainConfig(**{**options, **changes})


def _task(config: PretrainConfig, seed: int = 0, unet_seed: int = 0, **changes) -> DDPMTask:
    images, labels = DIGITS.tensors("labelled")
    unet = build_unet(config, (1, 8, 8), 10, unet_seed)
    return DDPMTask(unet, build_scheduler(config), config, images, labels, seed, **changes)


def _run(task: DDPMTask, folder: Path, progress) -> Any:
    return train_ddpm(task, World(), States(folder), lambda step: step % 20 == 0, progress)


def _quiet(done: int, total: int, note: str) -> None:
    """A progress callback that looks away."""


def _weights(task: DDPMTask, ema) -> dict[str, Tensor]:
    averaged = {f"ema.{k}": v for k, v in ema.model.state_dict().items()}
    return {**task.unet.state_dict(), **averaged}


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_first_loss_equals_the_definition(tmp_path: Path, kind: str) -> None:
    """Ho et al. 2020, algorithm 1, and v of Salimans and Ho 2022, with the cosine schedule."""
    config = _config(num_steps=1, prediction_type=kind)
    task = _task(config)
    rows = epoch_indices(100, 16, 0, "labelled", 0)
    x0 = task.images[rows].double() / 127.5 - 1
    noise = torch.randn(x0.shape, generator=generator(0, "noise", 0)).double()
    t = torch.randint(0, 100, (16,), generator=generator(0, "timestep", 0))

    def f(step: float) -> float:
        return math.cos((step / 100 + 0.008) / 1.008 * math.pi / 2) ** 2

    abar = torch.tensor([f(int(s) + 1) / f(0) for s in t], dtype=torch.float64)
    a, b = abar.sqrt()[:, None, None, None], (1 - abar).sqrt()[:, None, None, None]
    target = noise if kind == "epsilon" else a * noise - b * x0
    with torch.no_grad():
        noisy = (a * x0 + b * noise).float()
        found = task.unet.train()(noisy, t, class_labels=task.labels[rows]).sample
    expected = float((found.double() - target).square().mean())
    _, result = _run(task, tmp_path, _quiet)
    assert result["loss"] == pytest.approx(expected, rel=1e-3) and result["steps"] == 1


def test_the_loss_falls_and_a_killed_run_continues_to_the_same_bits(tmp_path: Path) -> None:
    config, calls = _config(), []
    whole = _task(config)
    ema, result = _run(whole, tmp_path / "whole", lambda *c: calls.append(c[:2]))
    assert calls == [(50, 100), (100, 100)]
    assert [row["step"] for row in result["history"]] == [50, 100]
    assert result["history"][1]["loss"] < 0.8 * result["history"][0]["loss"]
    assert result["loss"] == result["history"][1]["loss"] and not ema.model.training

    def kill(*_: object) -> None:
        raise Killed

    with pytest.raises(Killed):
        _run(_task(config), tmp_path / "broken", kill)
    state = States(tmp_path / "broken").load()
    assert state is not None and (state["step"], state["count"]) == (40, 40)
    again = _task(config, unet_seed=99)
    again_ema, again_result = _run(again, tmp_path / "broken", _quiet)
    x, y = _weights(whole, ema), _weights(again, again_ema)
    assert x.keys() == y.keys() and [k for k in x if not torch.equal(x[k], y[k])] == []
    for a, b in zip(result["history"], again_result["history"], strict=True):
        assert (a["step"], a["loss"]) == (b["step"], b["loss"])
    assert again_result["seconds"] >= state["seconds"] > 0
    assert (result["resumed_step"], again_result["resumed_step"]) == (0, 40)


def test_the_seed_decides_the_batches(tmp_path: Path) -> None:
    weights = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        task = _task(_config(num_steps=3), seed=seed)
        torch.rand(3)  # the global generator must not matter
        _run(task, tmp_path / name, _quiet)
        weights.append(task.unet.state_dict())
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    assert any(not torch.equal(weights[0][k], weights[2][k]) for k in weights[0])


def test_an_exploding_run_says_what_to_do(tmp_path: Path) -> None:
    task = _task(_config(num_steps=8, lr=1e30, warmup_steps=0))
    with pytest.raises(FloatingPointError, match=r"NaN or infinite.*pretrain\.lr \(1e\+30\)"):
        _run(task, tmp_path, _quiet)
