"""torchvision's ResNets with a stem for small images."""

from __future__ import annotations

import torchvision  # type: ignore[import-untyped]
from torch import Tensor, nn

from ssat_ray.models.base import EmbeddingClassifier

DEPTHS = (18, 34, 50, 101, 152)


class SmallImageResNet(EmbeddingClassifier):
    """A torchvision ResNet whose stem is one 3x3 convolution of stride 1, without max pooling.

    Parameters have torchvision's names, behind `body.`.

    Args:
        in_channels, num_classes: C, and the size of the logits.
        depth: one of `DEPTHS`.
        mean, std: of the input.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        depth: int = 18,
        mean: tuple[float, ...] = (0.5,),
        std: tuple[float, ...] = (0.5,),
    ) -> None:
        super().__init__()
        if depth not in DEPTHS:
            raise ValueError(f"torchvision has ResNets of {DEPTHS} layers; found {depth}")
        self.set_input_scale(mean, std)
        body: torchvision.models.ResNet = getattr(torchvision.models, f"resnet{depth}")(
            weights=None, num_classes=num_classes
        )
        body.conv1 = nn.Conv2d(in_channels, body.conv1.out_channels, 3, 1, 1, bias=False)
        nn.init.kaiming_normal_(body.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.body = body

    def features(self, x: Tensor) -> Tensor:
        body = self.body
        x = body.relu(body.bn1(body.conv1(self.scaled(x))))
        out: Tensor = body.layer4(body.layer3(body.layer2(body.layer1(x))))
        return out

    def head(self, pooled: Tensor) -> Tensor:
        logits: Tensor = self.body.fc(pooled)
        return logits
