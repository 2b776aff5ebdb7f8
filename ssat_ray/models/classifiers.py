"""The small pre-activation ResNet for images of 8 to 32 pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAYERS = ("pooled", "logits", "unpooled")


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


class PreActResNet(nn.Module):
    """Pre-activation ResNet. Input (B, C, H, W) in [0, 1]; the mean 0.5 / std 0.5 scaling is inside.

    Args:
        in_channels: C.
        num_classes: size of the logits.
        widths, strides: channels and first stride of each group.
        blocks: blocks a group.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        widths: Sequence[int] = (32, 64, 128),
        strides: Sequence[int] = (1, 2, 2),
        blocks: int = 1,
    ) -> None:
        super().__init__()
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
        self.logits = nn.Linear(width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, x: Tensor) -> Tensor:
        """Last feature map (B, D, H', W')."""
        x = (x - 0.5) / 0.5
        return F.relu(self.batchnorm(self.layer(self.init_conv(x))))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes)."""
        return self.logits(self.features(x).mean((2, 3)))

    def embed(self, x: Tensor, layer: str = "pooled") -> Tensor:
        """Embedding (B, D): `pooled` features, `logits`, or the flattened `unpooled` feature map."""
        return self.embed_with_logits(x, layer)[0]

    def embed_with_logits(self, x: Tensor, layer: str = "pooled") -> tuple[Tensor, Tensor]:
        """Embedding (B, D) and logits (B, num_classes), float32 under autocast too, from one forward."""
        features = self.features(x)
        with torch.autocast(x.device.type, enabled=False):
            wide = torch.promote_types(features.dtype, torch.float32)
            pooled = features.to(wide).mean((2, 3))
            logits = self.logits(pooled)
        if layer == "pooled":
            return pooled, logits
        if layer == "logits":
            return logits, logits
        if layer == "unpooled":
            return features.flatten(1), logits
        raise ValueError(f"layer {layer!r}: expected one of {', '.join(LAYERS)}")


def num_flops(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Floating-point operations of one forward of one image: 2 for each multiply-add of convolutions and
    linear layers, counted on a real forward."""
    from torch.utils.flop_counter import FlopCounterMode

    was_training = model.training
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model.eval()(torch.zeros(1, *image_shape))
    model.train(was_training)
    return int(counter.get_total_flops())
