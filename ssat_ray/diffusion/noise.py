"""The noise schedule and what the U-Net is trained to predict."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ssat_ray.config import PretrainConfig

if TYPE_CHECKING:
    from diffusers import DDPMScheduler


def build_scheduler(config: PretrainConfig) -> DDPMScheduler:
    """The cosine schedule (Nichol and Dhariwal 2021), which keeps small images readable for longer."""
    from diffusers import DDPMScheduler

    return DDPMScheduler(
        config.num_timesteps,
        beta_schedule="squaredcos_cap_v2",
        prediction_type=config.prediction_type,
    )


def training_target(
    scheduler: DDPMScheduler, x0: Tensor, noise: Tensor, timesteps: Tensor
) -> Tensor:
    """What the U-Net should return (B, C, H, W), by the scheduler's `prediction_type`.

    epsilon: the noise; v_prediction: sqrt(abar) noise - sqrt(1 - abar) x0; sample: x0.

    Raises:
        ValueError: another prediction type.
    """
    kind = scheduler.config["prediction_type"]
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return scheduler.get_velocity(x0, noise, timesteps)  # type: ignore[arg-type, no-any-return]
    if kind == "sample":
        return x0
    raise ValueError(f"prediction_type {kind!r}: expected epsilon, v_prediction or sample")
