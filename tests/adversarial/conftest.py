"""Small models whose robust accuracy is known in closed form, or that gradients mislead a little."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn


def _linear(num_classes: int, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, num_classes))


def _curved(num_classes: int = 4, side: int = 4) -> nn.Sequential:
    torch.manual_seed(5)
    head = nn.Linear(32, num_classes)
    nn.init.normal_(head.weight)
    return nn.Sequential(nn.Flatten(), nn.Linear(side**2, 32), nn.Tanh(), head)


def _data(
    model: nn.Module, num_images: int, num_classes: int, side: int = 4
) -> tuple[Tensor, Tensor]:
    x = torch.rand(num_images, 1, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = model(x).argmax(dim=1)
    y[0] = (y[0] + 1) % num_classes
    return x, y


def _linear_truth(model: nn.Sequential, x: Tensor, y: Tensor, eps: float) -> list[bool]:
    weight, truth = next(model.parameters()).detach(), []
    for image, label in zip(x, y.tolist(), strict=True):
        robust = True
        for other in set(range(len(weight))) - {label}:
            direction = (weight[other] - weight[label]).sign().view(1, 4, 4)
            worst = (image + eps * direction).clamp(0, 1)
            logits = model(worst[None])[0]
            robust &= bool(logits[label] > logits[other])
        truth.append(robust)
    return truth


class L2Case(NamedTuple):
    """A linear model, images off the borders of [0, 1], and which of them are farther than eps from its boundary."""

    model: nn.Sequential
    x: Tensor
    y: Tensor
    eps: float
    truth: list[bool]


@pytest.fixture(scope="session")
def l2_case() -> L2Case:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2)).requires_grad_(False)
    model[1].bias.copy_(-0.5 * model[1].weight.sum(1))
    x = 0.4 + 0.2 * torch.rand(60, 1, 6, 6)  # Square's L2 version wants more than 4 x 4
    logits, weight = model(x), model[1].weight
    distance = (logits[:, 0] - logits[:, 1]).abs() / (weight[0] - weight[1]).norm()
    eps = float(distance.sort().values[29:31].mean())
    assert eps < 0.4
    return L2Case(model, x, logits.argmax(1), eps, (distance > eps).tolist())


@pytest.fixture(scope="session")
def linear() -> Callable[..., nn.Sequential]:
    """(num_classes, seed) -> a linear model of 4 x 4 images."""
    return _linear


@pytest.fixture(scope="session")
def curved() -> Callable[..., nn.Sequential]:
    """(num_classes, side) -> a model of square images, 4 x 4 by default, with one hidden layer."""
    return _curved


@pytest.fixture(scope="session")
def data() -> Callable[..., tuple[Tensor, Tensor]]:
    """(model, num_images, num_classes, side) -> images labelled by the model, the first one wrongly."""
    return _data


@pytest.fixture(scope="session")
def linear_truth() -> Callable[..., list[bool]]:
    """(model, x, y, eps) -> which images a linear model keeps: its worst point against each class is correct."""
    return _linear_truth
