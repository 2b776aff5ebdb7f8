"""Wide ResNet with the names and the numerics of the published robust checkpoints (Gowal, Rebuffi, Wang).

Their convolutions of stride 2 pad one row below and one column right, not one on each side.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ssat_ray.models.base import EmbeddingClassifier, initialise

BN_MOMENTUM = 0.01
ACTIVATIONS = {"relu": F.relu, "silu": F.silu}


def pad_for_3x3(x: Tensor, stride: int) -> Tensor:
    """What a 3x3 convolution of this stride needs to keep, or to halve, an even side."""
    return F.pad(x, (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1))


class WideBlock(nn.Module):
    """Pre-activation block; the 1x1 shortcut, where the width changes, is on the activated input."""

    def __init__(self, width_in: int, width_out: int, stride: int, activation: str) -> None:
        super().__init__()
        self.stride, self.activation = stride, ACTIVATIONS[activation]
        self.batchnorm_0 = nn.BatchNorm2d(width_in, momentum=BN_MOMENTUM)
        # A stride of 1 pads inside the convolution, which is faster.
        inside = 1 if stride == 1 else 0
        self.conv_0 = nn.Conv2d(width_in, width_out, 3, stride, inside, bias=False)
        self.batchnorm_1 = nn.BatchNorm2d(width_out, momentum=BN_MOMENTUM)
        self.conv_1 = nn.Conv2d(width_out, width_out, 3, 1, 1, bias=False)
        if width_in != width_out:
            self.shortcut = nn.Conv2d(width_in, width_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = self.activation(self.batchnorm_0(x))
        padded = active if self.stride == 1 else pad_for_3x3(active, self.stride)
        out = self.conv_1(self.activation(self.batchnorm_1(self.conv_0(padded))))
        return out + (self.shortcut(active) if hasattr(self, "shortcut") else x)


class WideGroup(nn.Module):
    """Blocks of one width; the first has the group's stride."""

    def __init__(
        self, width_in: int, width_out: int, stride: int, blocks: int, activation: str
    ) -> None:
        super().__init__()
        self.block = nn.Sequential(
            *(
                WideBlock(
                    width_in if i == 0 else width_out,
                    width_out,
                    stride if i == 0 else 1,
                    activation,
                )
                for i in range(blocks)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(x)
        return out


class WideResNet(EmbeddingClassifier):
    """WRN-`depth`-`width`.

    Args:
        in_channels, num_classes: C, and the size of the logits.
        depth: 6 n + 4.
        width: factor of the widths 16, 32, 64.
        activation: `relu` or `silu`.
        mean, std: of the input.

    Raises:
        ValueError: the depth is not 6 n + 4.

    Source: Zagoruyko and Komodakis 2016; the layout of Gowal et al. 2020 (arXiv 2010.03593).
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        depth: int = 28,
        width: int = 10,
        activation: str = "silu",
        mean: tuple[float, ...] = (0.5,),
        std: tuple[float, ...] = (0.5,),
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"a WRN's depth is 6 n + 4: 10, 16, 22, 28, 34 ...; found {depth}")
        self.set_input_scale(mean, std)
        self.activation = ACTIVATIONS[activation]
        widths, blocks = [16, 16 * width, 32 * width, 64 * width], (depth - 4) // 6
        self.init_conv = nn.Conv2d(in_channels, widths[0], 3, 1, 1, bias=False)
        self.layer = nn.Sequential(
            *(
                WideGroup(widths[g], widths[g + 1], stride, blocks, activation)
                for g, stride in enumerate((1, 2, 2))
            )
        )
        self.batchnorm = nn.BatchNorm2d(widths[-1], momentum=BN_MOMENTUM)
        self.logits = nn.Linear(widths[-1], num_classes)
        initialise(self)

    def features(self, x: Tensor) -> Tensor:
        return self.activation(self.batchnorm(self.layer(self.init_conv(self.scaled(x)))))
