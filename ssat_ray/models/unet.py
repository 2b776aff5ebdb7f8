"""The class-conditional U-Net of `pretrain`, as a diffusers model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ssat_ray.config import PretrainConfig

if TYPE_CHECKING:
    from diffusers import UNet2DModel


def is_conditional(unet: UNet2DModel) -> bool:
    """Whether it takes a class for each image."""
    return unet.config["num_class_embeds"] is not None


def build_unet(
    config: PretrainConfig, image_shape: tuple[int, int, int], num_classes: int, seed: int
) -> UNet2DModel:
    """An attention-free class-conditional UNet2DModel; its weights are a function of `seed`."""
    from diffusers import UNet2DModel

    channels, height, width = image_shape
    levels = len(config.channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DModel(
            sample_size=(height, width) if height != width else height,
            in_channels=channels,
            out_channels=channels,
            layers_per_block=config.layers_per_block,
            block_out_channels=config.channels,
            down_block_types=("DownBlock2D",) * levels,
            up_block_types=("UpBlock2D",) * levels,
            norm_num_groups=config.norm_num_groups,
            num_class_embeds=num_classes,
            add_attention=False,
        )
    return unet.to(memory_format=torch.channels_last)
