"""What every classifier of this project can do: logits, and an embedding from the same forward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ALIGNED = 8
"""Float32 numbers in 32 bytes."""
LAYERS = ("pooled", "logits", "unpooled")


class EmbeddingClassifier(nn.Module, ABC):
    """Base of classifiers that pool a last feature map; input (B, C, H, W) float in [0, 1].

    Subclasses call `set_input_scale`, implement `features` and have the last layer as `logits`, or
    their own `head`.
    """

    mean: Tensor
    std: Tensor
    logits: nn.Module

    def set_input_scale(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """The model sees (x - mean) / std; one number for all channels or one a channel.

        The buffers are not part of the state dict, as in the published checkpoints.
        """
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).reshape(1, -1, 1, 1), persistent=False)

    def scaled(self, x: Tensor) -> Tensor:
        """The images as the first convolution sees them."""
        return (x - self.mean) / self.std

    @abstractmethod
    def features(self, x: Tensor) -> Tensor:
        """Last feature map (B, D, H', W'), activated."""

    def head(self, pooled: Tensor) -> Tensor:
        """(B, D) pooled features -> logits (B, num_classes)."""
        logits: Tensor = self.logits(pooled)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes)."""
        return self.head(self.features(x).mean((2, 3)))

    def embed(self, x: Tensor, layer: str = "pooled") -> Tensor:
        """Embedding (B, D): `pooled` features, `logits`, or the flattened `unpooled` feature map."""
        return self.embed_with_logits(x, layer)[0]

    def embed_with_logits(self, x: Tensor, layer: str = "pooled") -> tuple[Tensor, Tensor]:
        """Embedding (B, D) and logits (B, num_classes), float32 under autocast too, from one forward."""
        features = self.features(x)
        with torch.autocast(x.device.type, enabled=False):
            wide = torch.promote_types(features.dtype, torch.float32)
            pooled = features.to(wide).mean((2, 3))
            logits = self.head(pooled)
        if layer == "pooled":
            return pooled, logits
        if layer == "logits":
            return logits, logits
        if layer == "unpooled":
            return features.flatten(1), logits
        raise ValueError(f"layer {layer!r}: expected one of {', '.join(LAYERS)}")


class AlignedLinear(nn.Linear):
    """A linear layer of any width whose rows start on multiples of 32 bytes for the product.

    Otherwise MKL takes other kernels for some rows than for others, by where in memory they start: the last
    bits of a row's logits would depend on its place in the batch.
    """

    def forward(self, x: Tensor) -> Tensor:
        padding = (0, -self.in_features % _ALIGNED)
        return F.linear(F.pad(x, padding), F.pad(self.weight, padding), self.bias)


def initialise(model: nn.Module) -> None:
    """He initialisation of convolutions (fan out), as in training from scratch by the same authors."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


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
