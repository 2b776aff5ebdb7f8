"""Guided fine-tuning: gradients in every tensor, lambda = 0, the terms by hand, workers, and resuming."""

from __future__ import annotations

import copy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.distributed as dist
from diffusers import UNet2DModel
from torch import Tensor

from ssat_ray.config import DataConfig, FinetuneConfig, GuidedRow, ModelConfig, PretrainConfig
from ssat_ray.data.batches import epoch_indices, generator
from ssat_ray.data.labelled import read_labelled
from ssat_ray.diffusion.guidance import ClassMargin, Guide, Regulariser, margin_of
from ssat_ray.diffusion.noise import build_scheduler
from ssat_ray.models.registry import build_classifier
from ssat_ray.models.unet import build_unet, is_conditional
from ssat_ray.selection.gmm import fit_gmm
from ssat_ray.training import ddpm
from ssat_ray.training.ddpm import DDPMTask, train_ddpm
from ssat_ray.training.state import States
from ssat_ray.training.world import World
from tests.unets import tiny_unet

KINDS: tuple[GuidedRow, ...] = ("pcg", "lcg-km", "lcg-gmm")
PREDICTIONS = ("epsilon", "v_prediction")
NUM_STEPS = 20
VANISHING = ("to_k.bias",)
"""A key's bias adds the same to all of a query's products, and the softmax takes it out again."""


class Killed(Exception):
    """Stands for a kill at a moment of the test's choosing."""


def _base(prediction: str = "v_prediction") -> PretrainConfig:
    return PretrainConfig(
        channels=(8, 16), norm_num_groups=2, num_timesteps=100, prediction_type=prediction
    )


def _unet(prediction: str = "v_prediction") -> UNet2DModel:
    return build_unet(_base(prediction), (1, 8, 8), 10, seed=0)


def _guide(kind: GuidedRow | Literal["per-class"]) -> Guide:
    model = ModelConfig(name="preact-small", widths=(4, 8), strides=(1, 2))
    classifier = build_classifier(model, (1, 8, 8), 10, seed=1).eval().requires_grad_(False)
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(200, 8)).astype(np.float32)
    if kind == "per-class":
        margin = ClassMargin(torch.from_numpy(rng.normal(size=(10, 3, 10)).astype(np.float32)))
        return Guide("lcg-km", classifier, "pooled", margin, scale=0.5)
    clusters = {"pcg": None, "lcg-km": rows[:5], "lcg-gmm": fit_gmm(rows, 3, restarts=1)}
    found = clusters[kind]
    of = None if found is None else margin_of(found)
    return Guide(kind, classifier, "pooled", of, scale=0.5)


def _task(
    kind: GuidedRow = "lcg-km", prediction: str = "v_prediction", **settings: Any
) -> DDPMTask:
    options = {"num_steps": NUM_STEPS, "batch_size": 16, "warmup_steps": 2, **settings}
    config = FinetuneConfig(**options)
    unet = _unet(prediction)
    base = copy.deepcopy(unet).requires_grad_(False) if config.anchor else None
    regulariser = Regulariser(_guide(kind), base, config)
    digits = read_labelled(DataConfig(num_test=900, num_labelled=100, num_validation=60))
    images, labels = digits.tensors("labelled")
    scheduler = build_scheduler(_base(prediction))
    return DDPMTask(unet, scheduler, config, images, labels, 0, "finetune", regulariser)


def _run(task: DDPMTask, folder: Path, progress: Any = lambda *_: None) -> Any:
    return train_ddpm(task, World.current(), States(folder), lambda step: step % 5 == 0, progress)


def _noisy(scheduler: Any, count: int) -> tuple[Tensor, Tensor]:
    """Noisy images of all levels of noise."""
    rng = torch.Generator().manual_seed(0)
    timesteps = torch.linspace(0, 99, count).long()
    noise = torch.randn(count, 1, 8, 8, generator=rng)
    x0 = torch.rand(count, 1, 8, 8, generator=rng) * 2 - 1
    return scheduler.add_noise(x0, noise, timesteps), timesteps


@pytest.mark.parametrize("kind", [*KINDS, "per-class"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("attention", [False, True])
def test_guidance_alone_gives_every_tensor_a_gradient(
    kind: GuidedRow | Literal["per-class"], prediction: str, attention: bool
) -> None:
    """What the authors' research revision did not: it computed the term under no_grad."""
    unet, labels = _unet(prediction), torch.arange(32) % 10
    if attention:
        unet = tiny_unet()
    conditions = None if attention else labels
    config = FinetuneConfig(weight=1.0, timestep_weight="uniform")
    scheduler = build_scheduler(_base(prediction))
    regulariser = Regulariser(_guide(kind), None, config)
    noisy, timesteps = _noisy(scheduler, 32)
    predicted = unet.train()(noisy, timesteps, class_labels=conditions).sample
    guidance, anchor = regulariser(scheduler, noisy, timesteps, conditions, predicted)
    guidance.backward()
    largest = {
        name: 0.0 if p.grad is None else float(p.grad.abs().max())
        for name, p in unet.named_parameters()
    }
    top = max(largest.values())
    vanishing = {name for name, value in largest.items() if value <= 1e-8 * top}
    assert top > 0 and float(anchor) == 0.0
    assert vanishing <= {name for name in largest if name.endswith(VANISHING)}
    assert all(p.grad is None for p in regulariser.guide.classifier.parameters())


def test_without_weight_it_is_plain_fine_tuning_to_the_bit(tmp_path: Path) -> None:
    guided, plain = _task(weight=0.0), _task(weight=0.0)
    plain = DDPMTask(**{**plain.__dict__, "regulariser": None})
    (a, found), (b, expected) = _run(guided, tmp_path / "a"), _run(plain, tmp_path / "b")
    assert found["loss"] == expected["loss"] and found["guidance"] == 0.0
    x, y = a.model.state_dict(), b.model.state_dict()
    assert [k for k in y if not torch.equal(x[k], y[k])] == []
    assert any(not torch.equal(y[k], v) for k, v in _unet().state_dict().items())


def test_lambda_rises_and_stays() -> None:
    regulariser = _task(weight=0.8, weight_warmup_steps=4).regulariser
    assert regulariser is not None
    assert [regulariser.weight(s) for s in range(6)] == pytest.approx(
        [0.2, 0.4, 0.6, 0.8, 0.8, 0.8]
    )
    at_once = _task(weight=0.8, weight_warmup_steps=0).regulariser
    assert at_once is not None and at_once.weight(0) == 0.8


def test_the_terms_of_the_first_step_equal_their_definitions(tmp_path: Path) -> None:
    """Margins by NumPy on the predicted images, over the median; the anchor is 0 before the first update."""
    task = _task(num_steps=1, anchor=1.0, timestep_weight="alpha-bar")
    rows = epoch_indices(100, 16, 0, "labelled", 0)
    x0 = task.images[rows].float() / 127.5 - 1
    noise = torch.randn(x0.shape, generator=generator(0, "noise", 0))
    t = torch.randint(0, 100, (16,), generator=generator(0, "timestep", 0))
    abar = task.scheduler.alphas_cumprod[t]
    a, b = abar.sqrt()[:, None, None, None], (1 - abar).sqrt()[:, None, None, None]
    noisy = a * x0 + b * noise
    assert task.regulariser is not None
    guide = task.regulariser.guide
    with torch.no_grad():
        v = task.unet(noisy, t, class_labels=task.labels[rows]).sample
        h = guide.classifier.embed(((a * noisy - b * v + 1) / 2).clamp(0, 1)).double().numpy()
    distances = np.sort(
        np.linalg.norm(h[:, None] - guide.margin.centroids.numpy()[None], axis=2), axis=1
    )
    margins = (distances[:, 1] - distances[:, 0]) / 0.5
    _, result = _run(task, tmp_path)
    assert result["guidance"] == pytest.approx(float((abar.numpy() * margins).mean()), rel=1e-4)
    assert result["anchor"] == pytest.approx(0, abs=1e-10)
    assert result["loss"] == pytest.approx(
        float((v - (a * noise - b * x0)).square().mean()), rel=1e-4
    )


@pytest.mark.parametrize("kind", KINDS)
def test_guided_steps_lower_the_score_and_the_anchor_holds_them_back(
    tmp_path: Path, kind: GuidedRow
) -> None:
    options = {"num_steps": 60, "lr": 1e-3, "weight_warmup_steps": 0, "timestep_weight": "uniform"}
    ends = {}
    for name, settings in {
        "plain": {"weight": 1e-9},
        "guided": {"weight": 5.0, "anchor": 1e-9},
        **({"held": {"weight": 5.0, "anchor": 50.0}} if kind == "lcg-km" else {}),
    }.items():
        _, ends[name] = _run(_task(kind, **options, **settings), tmp_path / name)
    assert ends["guided"]["guidance"] < ends["plain"]["guidance"]
    if "held" in ends:
        assert ends["held"]["anchor"] < 0.5 * ends["guided"]["anchor"]


def test_an_unconditional_model_is_fine_tuned_without_labels(tmp_path: Path) -> None:
    options = {**_unet().config, "num_class_embeds": None}
    torch.manual_seed(0)
    unet = UNet2DModel(**{k: v for k, v in options.items() if not k.startswith("_")})
    task = _task(num_steps=3)
    assert not is_conditional(unet) and is_conditional(task.unet)
    task = replace(task, unet=unet)
    _, result = _run(task, tmp_path)
    assert 0 < result["loss"] < 3 and result["guidance"] > 0


def test_a_killed_run_continues_to_the_same_bits(tmp_path: Path) -> None:
    settings = {"num_steps": 60, "anchor": 0.1}
    ema, result = _run(_task(**settings), tmp_path / "whole")

    def kill(*_: object) -> None:
        raise Killed

    with pytest.raises(Killed):
        _run(_task(**settings), tmp_path / "broken", kill)  # after step 50
    task, passes = _task(**settings), []
    task.unet.register_forward_pre_hook(lambda *_: passes.append(1))
    again, again_result = _run(task, tmp_path / "broken")
    assert (again_result["resumed_step"], result["resumed_step"]) == (45, 0)
    assert len(passes) == 15, "it went on, it did not start again"
    x, y = ema.model.state_dict(), again.model.state_dict()
    assert [k for k in x if not torch.equal(x[k], y[k])] == []
    for key in ("loss", "guidance", "anchor"):
        rows = [[step[key] for step in found["history"]] for found in (result, again_result)]
        assert rows[0] == rows[1] and len(rows[0]) == 2 and result[key] > 0


BATCH_SIZES = (16, 15)


def _losses(folder: Path, batch_size: int) -> list[list[float]]:
    """The loss and the guidance of each of 20 steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ddpm, "LOG_EVERY", 1)
        _, result = _run(_task(batch_size=batch_size), folder)
    return [[step["loss"], step["guidance"]] for step in result["history"]]


def test_two_workers_have_the_same_losses(tmp_path: Path) -> None:
    """Also where one of them has an image more."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.training.test_finetune", str(rank), str(tmp_path)],
            cwd=Path(__file__).parents[2],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert found[0] == found[1]
    for batch_size, losses in zip(BATCH_SIZES, found[0], strict=True):
        alone = _losses(tmp_path / f"alone-{batch_size}", batch_size)
        np.testing.assert_allclose(losses, alone, rtol=1e-5)
        assert np.shape(losses) == (NUM_STEPS, 2)


if __name__ == "__main__":
    torch.set_num_threads(1)
    number, where = int(sys.argv[1]), Path(sys.argv[2])
    dist.init_process_group(
        "gloo", init_method=f"file://{where / 'init'}", rank=number, world_size=2
    )
    torch.save([_losses(where / f"two-{b}", b) for b in BATCH_SIZES], where / f"{number}.pt")
    dist.destroy_process_group()
