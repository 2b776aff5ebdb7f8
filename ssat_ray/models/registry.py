"""Build a classifier by name, or from `package.module:factory`."""

from __future__ import annotations

import importlib

import torch
from torch import nn

from ssat_ray.config import ModelConfig
from ssat_ray.errors import UserError
from ssat_ray.models.classifiers import PreActResNet


def build_classifier(
    config: ModelConfig, image_shape: tuple[int, int, int], num_classes: int, seed: int
) -> nn.Module:
    """A freshly initialised classifier, channels-last, its weights a function of `seed`.

    Args:
        config: `preact-small`, or an import path to `factory(in_channels, num_classes)`, which returns a
            module with `forward(x) -> logits` and `embed_with_logits(x, layer) -> (embedding, logits)`.
        image_shape: (C, H, W).

    Raises:
        UserError: the import path does not lead to such a factory.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.name == "preact-small":
            model: nn.Module = PreActResNet(
                image_shape[0], num_classes, config.widths, config.strides, config.blocks
            )
        else:
            model = _imported(config.name)(image_shape[0], num_classes)
    for method in ("forward", "embed_with_logits"):
        if not callable(getattr(model, method, None)):
            raise UserError(f"model.name={config.name}: its module has no method {method}().")
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _imported(path: str):  # type: ignore[no-untyped-def]
    module, _, name = path.partition(":")
    try:
        factory = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"model.name={path} cannot be imported: {error}.") from error
    if not callable(factory):
        raise UserError(f"model.name={path} is {type(factory).__name__}, not a factory.")
    return factory
