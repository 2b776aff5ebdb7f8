"""Tiny DDPMs of digits from elsewhere, as diffusers saves them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel


def tiny_unet(**changes: Any) -> UNet2DModel:
    """Unconditional and with attention, as `google/ddpm-cifar10-32` is, for 8x8 grey images; the same weights every time."""
    options: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "layers_per_block": 1,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 2,
        "attention_head_dim": 8,
    }
    torch.manual_seed(0)
    return UNet2DModel(**(options | changes))


def save_pipeline(
    folder: Path, unet: UNet2DModel, layout: str = "folders", **scheduler: object
) -> Path:
    """A pipeline with a linear schedule and, unless told otherwise, epsilon.

    Args:
        layout: `folders` for unet/ and scheduler/, `top` for both at the top, as the hub's first DDPMs have them.
    """
    schedule = DDPMScheduler(1000, beta_schedule="linear", **scheduler)
    unet.save_pretrained(folder / "unet" if layout == "folders" else folder)
    schedule.save_pretrained(folder / "scheduler" if layout == "folders" else folder)
    index = {"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
