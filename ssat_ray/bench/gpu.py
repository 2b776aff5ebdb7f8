"""A TRADES-10 step and sampling on an accelerator: what share of its matrix peak they use, and where the time goes."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

import torch

from ssat_ray.bench.measure import Comparison
from ssat_ray.bench.parts import notes, parts, seconds
from ssat_ray.bench.step import Case, title, trainer
from ssat_ray.config import GenerateConfig, ModelConfig
from ssat_ray.training.step import Engine
from ssat_ray.training.world import World

WRN = ("WRN-28-10", ModelConfig(name="wrn-28-10-silu"), (3, 32, 32), 512)
CASES = (Case(*WRN, "bf16", 0.4), Case(*WRN, "bf16", 0.4, bn_group=64))
"""The second as the presets have it."""
WARM_UP = 3
"""Steps before the clock starts: compilation and the choice of kernels."""


def steps(repeats: int, device: torch.device, cases: tuple[Case, ...] = CASES) -> list[Comparison]:
    """One line a case: seconds of a step, and of its multiplications at the device's measured matrix peak.

    Their ratio is the MFU: images/s x forward passes a step x FLOPs a forward / peak. A TRADES-10 step
    is 27 forward passes' work: one clean, ten attack steps of two, and two training passes of three. Noted: images a
    second, the peak, and the seconds and shares of the step's parts.
    """
    return [_measured(case, repeats, device) for case in cases]


def _measured(case: Case, repeats: int, device: torch.device) -> Comparison:
    engine = Engine(device=device, exact=False, compile=device.type == "cuda")
    ours = trainer(case, World(), engine)
    for _ in range(WARM_UP):
        ours.advance()
    took = [seconds(ours.advance, device) for _ in range(repeats)]
    peak = matrix_peak(device)
    work = case.batch_size * ours.forward_units() * ours.forward_flops
    return Comparison(
        f"{title(case)}, {device.type}",
        took,
        [work / peak],
        case.bar,
        {
            "images/s": f"{case.batch_size / statistics.median(took):,.0f}",
            "peak": f"{peak / 1e12:.4g} TFLOP/s",
            **notes(parts(ours, repeats)),
        },
    )


@dataclass(frozen=True)
class Sampling:
    """Images made at once: by which U-Net, of which shape, how many."""

    name: str
    unet: dict[str, Any]
    shape: tuple[int, int, int]
    batch_size: int


SAMPLING = (
    Sampling(
        "the U-Net of google/ddpm-cifar10-32",
        {
            "sample_size": 32,
            "in_channels": 3,
            "out_channels": 3,
            "layers_per_block": 2,
            "block_out_channels": (128, 256, 256, 256),
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        },
        (3, 32, 32),
        512,
    ),
)


def samples(
    repeats: int, device: torch.device, cases: tuple[Sampling, ...] = SAMPLING
) -> list[Comparison]:
    """One line a case, 20 steps of DPM-Solver++ in bf16: seconds a batch, and of its multiplications at the peak.

    Of `sample` alone, from noise on the device to bytes on the CPU. What the stage `generate` does besides is not in it:
    noise by image id, made on the CPU, its transfer, shards, Ray. Untrained weights: they change no time.
    """
    return [_sampled(case, repeats, device) for case in cases]


def _sampled(case: Sampling, repeats: int, device: torch.device) -> Comparison:
    import numpy as np
    from diffusers import DDPMScheduler, UNet2DModel
    from torch.utils.flop_counter import FlopCounterMode

    from ssat_ray.diffusion.sampling import initial_noise, sample

    config = GenerateConfig(precision="bf16")
    unet = UNet2DModel(**case.unet).eval().to(device, memory_format=torch.channels_last)
    noise = initial_noise(np.arange(case.batch_size), case.shape, 0).to(device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(noise[:1], 0)
    work = case.batch_size * config.num_inference_steps * counter.get_total_flops()

    def make() -> None:
        sample(unet, DDPMScheduler(1000), noise, None, config)

    make()
    took, peak = [seconds(make, device) for _ in range(repeats)], matrix_peak(device)
    return Comparison(
        f"`sample` alone, {config.num_inference_steps} steps of {config.sampler}, {case.name}, batch {case.batch_size}, bf16, {device.type}",
        took,
        [work / peak],
        None,
        {
            "images/s": f"{case.batch_size / statistics.median(took):,.0f}",
            "peak": f"{peak / 1e12:.4g} TFLOP/s",
        },
    )


def matrix_peak(device: torch.device) -> float:
    """FLOP/s of a large bf16 matrix product, the best of several: what the device can really do."""
    size = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    found = [seconds(lambda: a @ b, device) for _ in range(20)]
    return float(2 * size**3 / min(found))
