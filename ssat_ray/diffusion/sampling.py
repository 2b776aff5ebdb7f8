"""Sample images from a DDPM with DDIM, DPM-Solver++ or ancestral steps; noise is a function of the image id."""

from __future__ import annotations

import importlib
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssat_ray.config import GenerateConfig
from ssat_ray.diffusion.guidance import Guide, guided, predicted_x0
from ssat_ray.errors import UserError

if TYPE_CHECKING:
    from diffusers import DDPMScheduler, UNet2DModel


def initial_noise(ids: NDArray[np.int64], shape: tuple[int, int, int], seed: int) -> Tensor:
    """Standard normal noise (n, C, H, W), each image's from Philox keyed by (seed, id).

    So an image does not depend on which actor makes it, nor on its neighbours.
    """
    rows = [
        np.random.Generator(np.random.Philox(key=[seed, int(i)])).standard_normal(shape)
        for i in ids
    ]
    return torch.from_numpy(np.stack(rows).astype(np.float32))


def balanced_labels(ids: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
    """Condition of each image: id modulo the number of classes, so classes are balanced by construction."""
    return ids % num_classes


def step_generators(
    ids: NDArray[np.int64], seed: int, config: GenerateConfig
) -> list[torch.Generator] | None:
    """Of the noise that ancestral sampling adds at every step, each image's its own; other samplers add none."""
    if config.sampler != "ancestral":
        return None
    words = [np.random.SeedSequence([seed, int(i)]).generate_state(1, np.uint64)[0] for i in ids]
    return [torch.Generator().manual_seed(int(word >> np.uint64(1))) for word in words]


def build_solver(scheduler: DDPMScheduler, sampler: str, num_steps: int) -> Any:
    """A diffusers sampler of the scheduler's own noise schedule, its timesteps set.

    ddim: Song et al. 2021, eta 0; dpmsolver++: Lu et al. 2022, 2M; ancestral: Ho et al. 2020, algorithm 2.
    """
    from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

    solver: Any
    if sampler == "ddim":
        solver = DDIMScheduler.from_config(
            scheduler.config, clip_sample=False, timestep_spacing="trailing"
        )
    elif sampler == "dpmsolver++":
        solver = DPMSolverMultistepScheduler.from_config(
            scheduler.config,
            algorithm_type="dpmsolver++",
            solver_order=2,
            timestep_spacing="trailing",
        )
    else:
        solver = DDPMScheduler.from_config(scheduler.config, timestep_spacing="trailing")
    solver.set_timesteps(num_steps)
    return solver


def in_range(x_t: Tensor, predicted: Tensor, alpha_bar: Tensor) -> Tensor:
    """The noise (B, C, H, W) that goes with the predicted image clamped to [-1, 1], for predicted noise.

    Where nearly all is noise the image is a small difference over a smaller signal, 1 / 20,000 at the start of the
    cosine schedule: without the clamp an error of 1 % there moves every pixel out of range for good.

    Args:
        x_t: (B, C, H, W) noisy images. predicted: the noise in them. alpha_bar: of their timestep, above 0.

    Source: `clip_denoised` of Ho et al. 2020, with the noise made to agree.
    """
    signal, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    x0 = predicted_x0("epsilon", x_t, predicted, alpha_bar.view(1))
    return torch.where(x0.abs() > 1, (x_t - signal * x0.clamp(-1, 1)) / noise, predicted)


def import_samplers() -> None:
    """Seconds that a worker's first image or step would take longer than the others'."""
    importlib.import_module("diffusers.schedulers.scheduling_dpmsolver_multistep")
    importlib.import_module("diffusers.models.unets.unet_2d")


@torch.no_grad()
def sample(
    unet: UNet2DModel,
    scheduler: DDPMScheduler,
    noise: Tensor,
    labels: Tensor | None,
    config: GenerateConfig,
    guide: Guide | None = None,
    generators: list[torch.Generator] | None = None,
) -> Tensor:
    """Images (n, C, H, W) uint8 on the CPU, made where the noise is.

    Args:
        noise: (n, C, H, W) standard normal.
        labels: (n,) int64 classes; None for an unconditional U-Net.
        guide: lowers the images' scores with the weight `config.guidance`.
        generators: of each image, for `ancestral`.
    """
    solver = build_solver(scheduler, config.sampler, config.num_inference_steps)
    device = noise.device
    more = {"generator": generators} if config.sampler == "ancestral" else {}
    x = noise.contiguous(memory_format=torch.channels_last)

    def predict(t: Tensor, x: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            predicted: Tensor = unet(x, t, class_labels=labels).sample
        return predicted.float()

    for t in solver.timesteps:
        if guide is None or not config.guidance:
            predicted = predict(t, x)
        else:
            alpha_bar = scheduler.alphas_cumprod[t].to(x).expand(len(x))
            predicted = guided(
                guide,
                scheduler.config["prediction_type"],
                x,
                partial(predict, t),
                alpha_bar,
                config.guidance,
                labels,
            )
        if scheduler.config["prediction_type"] == "epsilon":
            predicted = in_range(x, predicted, scheduler.alphas_cumprod[t].to(x))
        x = solver.step(predicted, t, x, **more).prev_sample.contiguous(
            memory_format=torch.channels_last
        )
    if not torch.isfinite(x).all():
        raise UserError(
            f"{config.sampler} with {config.num_inference_steps} steps and generate.guidance={config.guidance:g} "
            "gives images that are not finite; lower the guidance, or train the DDPM longer."
        )
    return ((x + 1) * 127.5).round_().clamp_(0, 255).to(torch.uint8).cpu()
