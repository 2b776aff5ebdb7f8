"""The small pre-activation ResNet for images of 8 to 32 pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ssat_ray.models.base import AlignedLinear, EmbeddingClassifier, initialise


class PreActBlock(nn.Module):
    """Pre-activation residual block; the 1x1 shortcut, where the shape changes, is on the activated input."""

    def __init__(self, width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        self.batchnorm_0 = nn.BatchNorm2d(width_in)
        self.conv_0 = nn.Conv2d(width_in, width_out, 3, stride, 1, bias=False)
        self.batchnorm_1 = nn.BatchNorm2d(width_out)
        self.conv_1 = nn.Conv2d(width_out, width_out, 3, 1, 1, bias=False)
        same = width_in == width_out and stride == 1
        self.shortcut = None if same else nn.Conv2d(width_in, width_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.batchnorm_0(x))
        out = self.conv_1(F.relu(self.batchnorm_1(self.conv_0(active))))
        return out + (x if self.shortcut is None else self.shortcut(active))


class PreActSmall(EmbeddingClassifier):
    """Pre-activation ResNet of any widths and strides, `torch`'s padding and BatchNorm momentum.

    Args:
        in_channels: C.
        num_classes: size of the logits.
        widths, strides: channels and first stride of each group.
        blocks: blocks a group.
        mean, std: of the input.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        widths: Sequence[int] = (32, 64, 128),
        strides: Sequence[int] = (1, 2, 2),
        blocks: int = 1,
        mean: tuple[float, ...] = (0.5,),
        std: tuple[float, ...] = (0.5,),
    ) -> None:
        super().__init__()
        self.set_input_scale(mean, std)
        self.init_conv = nn.Conv2d(in_channels, widths[0], 3, 1, 1, bias=False)
        groups, width = [], widths[0]
        for out, stride in zip(widths, strides, strict=True):
            members = []
            for i in range(blocks):
                members.append(PreActBlock(width, out, stride if i == 0 else 1))
                width = out
            groups.append(nn.Sequential(*members))
        self.layer = nn.Sequential(*groups)
        self.batchnorm = nn.BatchNorm2d(width)
        self.logits = AlignedLinear(width, num_classes)
        initialise(self)

    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.batchnorm(self.layer(self.init_conv(self.scaled(x)))))
