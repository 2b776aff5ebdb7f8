"""Sample images from a class-conditional DDPM with DDIM or DPM-Solver++; noise is a function of the image id."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssat_ray.config import GenerateConfig

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


@torch.inference_mode()
def sample(
    unet: UNet2DModel,
    scheduler: DDPMScheduler,
    noise: Tensor,
    labels: Tensor,
    config: GenerateConfig,
) -> Tensor:
    """Images (n, C, H, W) uint8 from standard normal noise and (n,) int64 classes.

    Source: Song et al. 2021 (DDIM, eta 0); Lu et al. 2022 (DPM-Solver++ 2M); diffusers' implementations.
    """
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

    if config.sampler == "ddim":
        solver = DDIMScheduler.from_config(
            scheduler.config, clip_sample=False, timestep_spacing="trailing"
        )
    else:
        solver = DPMSolverMultistepScheduler.from_config(
            scheduler.config, algorithm_type="dpmsolver++", solver_order=2
        )
    solver.set_timesteps(config.num_inference_steps)
    x = noise.contiguous(memory_format=torch.channels_last)
    for t in solver.timesteps:
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
            predicted = unet(x, t, class_labels=labels).sample
        x = solver.step(predicted.float(), t, x).prev_sample.contiguous(
            memory_format=torch.channels_last
        )
    return ((x + 1) * 127.5).round_().clamp_(0, 255).to(torch.uint8)
