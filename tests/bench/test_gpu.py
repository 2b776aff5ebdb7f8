"""The bench of a step on an accelerator, tiny and on the CPU: its figures fit together."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from diffusers import UNet2DModel

from ssat_ray.bench import gpu, parts
from ssat_ray.bench.step import Case
from ssat_ray.config import ModelConfig
from ssat_ray.loading import load_config
from ssat_ray.models.base import num_flops
from ssat_ray.models.registry import build_classifier

TINY = Case("tiny", ModelConfig(widths=(8, 16), strides=(1, 2)), (1, 8, 8), 16, "bf16", bar=0.4)
CPU = torch.device("cpu")
GIVEN = ["data.path=cifar", "pool.path=pools/edm"]
"""What the preset leaves to the user."""


def test_the_line() -> None:
    (line,) = gpu.steps(3, CPU, (TINY,))
    assert line.what == "TRADES-10 step, tiny, batch 16, bf16, cpu" and line.bar == 0.4
    peak = float(line.notes["peak"].removesuffix(" TFLOP/s")) * 1e12
    flops = num_flops(build_classifier(TINY.model, (1, 8, 8), 10, 0), (1, 8, 8))
    assert line.bare[0] == pytest.approx(16 * 27 * flops / peak, rel=0.01)
    rate = float(line.notes["images/s"].replace(",", ""))
    assert rate * 27 * flops / peak == pytest.approx(line.ratio, rel=0.05)
    assert {"feed", "attack", "loss and backward", "update and average"} < set(line.notes)


def test_the_groups_of_the_presets_are_a_case() -> None:
    (line,) = gpu.steps(1, CPU, (dataclasses.replace(TINY, bn_group=4),))
    assert line.what == "TRADES-10 step, tiny, batch 16, bf16, BatchNorm groups of 4, cpu"
    groups = [case.bn_group for case in gpu.CASES]
    assert groups == [None, load_config("cifar10-edm", GIVEN).train.bn_group]


def test_sampling_counts_every_step_of_every_image() -> None:
    unet = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "layers_per_block": 1,
        "block_out_channels": (8,),
        "down_block_types": ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",),
        "norm_num_groups": 2,
        "add_attention": False,
    }
    (line,) = gpu.samples(2, CPU, (gpu.Sampling("tiny", unet, (1, 8, 8), 4),))
    assert line.what == "`sample` alone, 20 steps of dpmsolver++, tiny, batch 4, bf16, cpu"
    peak = float(line.notes["peak"].removesuffix(" TFLOP/s")) * 1e12
    layers = list(UNet2DModel(**unet).modules())
    pixels = sum(64 * m.weight.numel() for m in layers if isinstance(m, torch.nn.Conv2d))
    vectors = sum(m.weight.numel() for m in layers if isinstance(m, torch.nn.Linear))
    assert line.bare[0] * peak == pytest.approx(4 * 20 * 2 * (pixels + vectors), rel=0.01)


def test_the_peak_is_a_rate_that_a_product_reaches() -> None:
    a = torch.randn(512, 512, dtype=torch.bfloat16)
    took = min(parts.seconds(lambda: a @ a, CPU) for _ in range(20))
    assert gpu.matrix_peak(CPU) == pytest.approx(2 * 512**3 / took, rel=0.9)
