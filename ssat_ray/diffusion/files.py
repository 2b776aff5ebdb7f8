"""DDPMs as diffusers pipeline folders: model_index.json, unet/ and scheduler/."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from diffusers import DDPMScheduler, UNet2DModel


def pipeline_files(unet: UNet2DModel, scheduler: DDPMScheduler) -> dict[str, bytes]:
    """The files of the folder: path within it -> content."""
    import diffusers

    index = {
        "_class_name": "DDPMPipeline",
        "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", type(scheduler).__name__],
        "unet": ["diffusers", type(unet).__name__],
    }
    with tempfile.TemporaryDirectory() as scratch:
        unet.save_pretrained(Path(scratch) / "unet")
        scheduler.save_pretrained(Path(scratch) / "scheduler")
        files = {
            str(p.relative_to(scratch)): p.read_bytes()
            for p in Path(scratch).rglob("*")
            if p.is_file()
        }
    return {**files, "model_index.json": json.dumps(index, indent=1).encode()}


def load_ddpm(folder: Path) -> tuple[UNet2DModel, DDPMScheduler]:
    """The frozen U-Net (eval mode, channels-last) and the scheduler of a folder of ours."""
    from diffusers import DDPMScheduler, UNet2DModel

    unet = UNet2DModel.from_pretrained(folder / "unet").eval().requires_grad_(False)
    return unet.to(memory_format=torch.channels_last), DDPMScheduler.from_pretrained(
        folder / "scheduler"
    )
