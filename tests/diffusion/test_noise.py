"""Training targets against float64 closed forms of the cosine schedule."""

import math

import pytest
import torch
from diffusers import DDPMScheduler

from ssat_ray.config import PretrainConfig
from ssat_ray.diffusion.noise import build_scheduler, training_target

STEPS = 50


def _alphas_cumprod() -> torch.Tensor:
    """Nichol and Dhariwal 2021, equation 17, with beta clipped at 0.999."""

    def f(t: float) -> float:
        return math.cos((t / STEPS + 0.008) / 1.008 * math.pi / 2) ** 2

    product, values = 1.0, []
    for t in range(STEPS):
        product *= 1 - min(1 - f(t + 1) / f(t), 0.999)
        values.append(product)
    return torch.tensor(values, dtype=torch.float64)


def _scheduler(kind: str) -> DDPMScheduler:
    return DDPMScheduler(STEPS, beta_schedule="squaredcos_cap_v2", prediction_type=kind)


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    timesteps = torch.tensor([0, 1, 17, 30, 48, 49])
    x0 = torch.rand(6, 2, 3, 3, generator=rng, dtype=torch.float64) * 2 - 1
    return x0, torch.randn(6, 2, 3, 3, generator=rng, dtype=torch.float64), timesteps


def test_the_schedule_is_the_cosine_schedule() -> None:
    for kind in ("epsilon", "v_prediction"):
        scheduler = build_scheduler(PretrainConfig(num_timesteps=STEPS, prediction_type=kind))
        assert scheduler.config["prediction_type"] == kind
        found = scheduler.alphas_cumprod.double()
        torch.testing.assert_close(found, _alphas_cumprod(), rtol=1e-3, atol=1e-7)
        assert bool((found.diff() < 0).all())


def test_targets_equal_their_closed_forms(batch) -> None:
    x0, noise, timesteps = batch
    abar = _alphas_cumprod()[timesteps][:, None, None, None]
    expected = {
        "epsilon": noise,
        "v_prediction": abar.sqrt() * noise - (1 - abar).sqrt() * x0,
        "sample": x0,
    }
    for kind, value in expected.items():
        found = training_target(_scheduler(kind), x0, noise, timesteps)
        torch.testing.assert_close(found, value, rtol=1e-5, atol=1e-5)


def test_x0_and_noise_follow_from_v_and_the_noisy_image(batch) -> None:
    x0, noise, timesteps = batch
    scheduler = _scheduler("v_prediction")
    noisy = scheduler.add_noise(x0, noise, timesteps)
    v = training_target(scheduler, x0, noise, timesteps)
    abar = _alphas_cumprod()[timesteps][:, None, None, None]
    torch.testing.assert_close(abar.sqrt() * noisy - (1 - abar).sqrt() * v, x0, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        (1 - abar).sqrt() * noisy + abar.sqrt() * v, noise, rtol=0, atol=1e-5
    )


def test_another_prediction_type_is_refused(batch) -> None:
    scheduler = _scheduler("epsilon")
    scheduler.register_to_config(prediction_type="score")
    with pytest.raises(ValueError, match=r"'score'.*epsilon, v_prediction or sample"):
        training_target(scheduler, *batch)
