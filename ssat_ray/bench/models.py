"""A small network for benches: three convolutions, so that what is not the model shows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Cnn3(nn.Module):
    """Three 3x3 convolutions of 16, 32 and 64 channels with stride 2 from the second on, then a linear layer."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv_0 = nn.Conv2d(in_channels, 16, 3, 1, 1)
        self.conv_1 = nn.Conv2d(16, 32, 3, 2, 1)
        self.conv_2 = nn.Conv2d(32, 64, 3, 2, 1)
        self.logits = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> logits (B, num_classes)."""
        return self.embed_with_logits(x)[1]

    def embed_with_logits(self, x: Tensor, layer: str = "pooled") -> tuple[Tensor, Tensor]:
        """Pooled features (B, 64), whatever the layer, and logits; float32 under autocast too."""
        x = F.relu(self.conv_0((x - 0.5) / 0.5))
        x = F.relu(self.conv_2(F.relu(self.conv_1(x))))
        with torch.autocast(x.device.type, enabled=False):
            pooled = x.to(torch.promote_types(x.dtype, torch.float32)).mean((2, 3))
            return pooled, self.logits(pooled)


def cnn3(in_channels: int, num_classes: int) -> Cnn3:
    return Cnn3(in_channels, num_classes)
