"""PreAct-ResNet-18 with the names and the numerics of the published robust checkpoints."""

from __future__ import annotations

from torch import Tensor, nn

from ssat_ray.models.base import EmbeddingClassifier, initialise
from ssat_ray.models.wide_resnet import ACTIVATIONS, BN_MOMENTUM, pad_for_3x3

_WIDTHS, _STRIDES, _BLOCKS = (64, 128, 256, 512), (1, 2, 2, 2), 2


class PreActResNetBlock(nn.Module):
    """Pre-activation block; the 3x3 shortcut, where the shape changes, is on the raw input."""

    def __init__(self, width_in: int, width_out: int, stride: int, activation: str) -> None:
        super().__init__()
        self.stride, self.activation = stride, ACTIVATIONS[activation]
        self.batchnorm_0 = nn.BatchNorm2d(width_in, momentum=BN_MOMENTUM)
        self.conv_2d_1 = nn.Conv2d(width_in, width_out, 3, stride, 0, bias=False)
        self.batchnorm_1 = nn.BatchNorm2d(width_out, momentum=BN_MOMENTUM)
        self.conv_2d_2 = nn.Conv2d(width_out, width_out, 3, 1, 1, bias=False)
        if stride != 1 or width_in != width_out:
            self.shortcut = nn.Conv2d(width_in, width_out, 3, stride, 0, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = self.activation(self.batchnorm_0(x))
        out = self.conv_2d_1(pad_for_3x3(active, self.stride))
        out = self.conv_2d_2(self.activation(self.batchnorm_1(out)))
        if hasattr(self, "shortcut"):
            x = self.shortcut(pad_for_3x3(x, self.stride))
        return out + x


class PreActResNet18(EmbeddingClassifier):
    """Four groups of two blocks, 64 to 512 channels.

    Args:
        in_channels, num_classes: C, and the size of the logits.
        activation: `relu` or `silu`.
        mean, std: of the input.

    Source: He et al. 2016 (identity mappings); the layout of Rebuffi et al. 2021 (arXiv 2103.01946).
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        activation: str = "silu",
        mean: tuple[float, ...] = (0.5,),
        std: tuple[float, ...] = (0.5,),
    ) -> None:
        super().__init__()
        self.set_input_scale(mean, std)
        self.activation = ACTIVATIONS[activation]
        self.conv_2d = nn.Conv2d(in_channels, _WIDTHS[0], 3, 1, 1, bias=False)
        width = _WIDTHS[0]
        for group, (out, stride) in enumerate(zip(_WIDTHS, _STRIDES, strict=True)):
            blocks = []
            for i in range(_BLOCKS):
                blocks.append(PreActResNetBlock(width, out, stride if i == 0 else 1, activation))
                width = out
            setattr(self, f"layer_{group}", nn.Sequential(*blocks))
        self.batchnorm = nn.BatchNorm2d(width, momentum=BN_MOMENTUM)
        self.logits = nn.Linear(width, num_classes)
        initialise(self)

    def features(self, x: Tensor) -> Tensor:
        x = self.conv_2d(self.scaled(x))
        for group in range(len(_WIDTHS)):
            x = getattr(self, f"layer_{group}")(x)
        return self.activation(self.batchnorm(x))
