"""Build a classifier by name, or from `package.module:factory`."""

from __future__ import annotations

import importlib
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from ssat_ray.config import ModelConfig
from ssat_ray.errors import UserError
from ssat_ray.models.preact_resnet import PreActResNet18
from ssat_ray.models.preact_small import PreActSmall
from ssat_ray.models.wide_resnet import WideResNet


def build_classifier(
    config: ModelConfig, image_shape: tuple[int, int, int], num_classes: int, seed: int
) -> nn.Module:
    """A freshly initialised classifier, channels-last, its weights a function of `seed`.

    Args:
        config: a name, or an import path to `factory(in_channels, num_classes)`, which returns a module
            with `forward(x) -> logits` and `embed_with_logits(x, layer) -> (embedding, logits)`, or
            `embed(x, layer) -> embedding` in its place, which then costs a second forward.
        image_shape: (C, H, W).

    Raises:
        UserError: the import path does not lead to such a factory, or the name or scale makes no model.
    """
    channels = image_shape[0]
    for field in ("mean", "std"):
        if len(getattr(config, field)) not in (1, channels):
            raise UserError(
                f"model.{field} has {len(getattr(config, field))} numbers, the images {channels} "
                "channel(s); give one number, or one a channel."
            )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _built(config, channels, num_classes)
    if not _has(model, "embed_with_logits") and _has(model, "embed"):
        model.embed_with_logits = MethodType(_embedded_and_classified, model)  # type: ignore[assignment]
    for method, other in (("forward", ""), ("embed_with_logits", " and no embed()")):
        if not _has(model, method):
            raise UserError(
                f"model.name={config.name}: its module has no method {method}(){other}."
            )
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def check_outputs(
    model: Any, name: str, image_shape: tuple[int, int, int], num_classes: int, layer: str
) -> None:
    """One black image through a classifier.

    Args:
        name: of the model, for the message. image_shape: (C, H, W). layer: of the embedding.

    Raises:
        UserError: it fails, or its embedding or logits are not (1, D) and (1, num_classes).
    """
    x = torch.zeros(1, *image_shape).contiguous(memory_format=torch.channels_last)
    try:
        with torch.inference_mode():
            found = (model.eval()(x), *model.embed_with_logits(x, layer))
            logits, *embedded = [tuple(part.shape) for part in found]
    except Exception as error:  # a module of the user's may raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"model.name={name}: forward() or embed_with_logits() of one image {image_shape} with layer "
            f"{layer!r} fails: {reason}."
        ) from error
    if logits != (1, num_classes):
        raise UserError(
            f"model.name={name}: forward() of one image gives {logits}; expected logits (1, {num_classes})."
        )
    if [shape[:1] for shape in embedded] != [(1,), (1,)] or list(map(len, embedded)) != [2, 2]:
        raise UserError(
            f"model.name={name}: embed_with_logits() of one image gives {' and '.join(map(str, embedded))}; "
            f"expected an embedding (1, D) and logits (1, {num_classes})."
        )
    if embedded[1] != logits:
        raise UserError(
            f"model.name={name}: embed_with_logits() gives logits {embedded[1]}, forward() {logits}."
        )


def _has(model: nn.Module, method: str) -> bool:
    return callable(getattr(model, method, None))


def _embedded_and_classified(model: Any, x: Tensor, layer: str = "pooled") -> tuple[Tensor, Tensor]:
    """`embed_with_logits` of a module that has `embed` alone."""
    return model.embed(x, layer), model(x)


def _built(config: ModelConfig, channels: int, num_classes: int) -> nn.Module:
    scale = {"mean": config.mean, "std": config.std}
    kind, *rest = config.name.split("-")
    if config.name == "preact-small":
        return PreActSmall(
            channels, num_classes, config.widths, config.strides, config.blocks, **scale
        )
    if kind == "wrn":
        try:
            return WideResNet(channels, num_classes, int(rest[0]), int(rest[1]), rest[2], **scale)
        except ValueError as error:
            raise UserError(f"model.name={config.name}: {error}.") from error
    if kind == "preact":
        return PreActResNet18(channels, num_classes, rest[-1], **scale)
    if ":" not in config.name:
        from ssat_ray.models.torchvision_resnet import SmallImageResNet  # slow, and seldom needed

        return SmallImageResNet(channels, num_classes, int(kind.removeprefix("resnet")), **scale)
    own: nn.Module = _imported(config.name)(channels, num_classes)
    return own


def _imported(path: str):  # type: ignore[no-untyped-def]
    module, _, name = path.partition(":")
    try:
        factory = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"model.name={path} cannot be imported: {error}.") from error
    if not callable(factory):
        raise UserError(f"model.name={path} is {type(factory).__name__}, not a factory.")
    return factory
