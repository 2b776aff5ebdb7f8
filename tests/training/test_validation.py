"""Validation: the same flags and logits to the bit from any number of ranks; accuracies by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ssat_ray.config import ModelConfig, ThreatConfig
from ssat_ray.models.registry import build_classifier
from ssat_ray.training.step import Engine
from ssat_ray.training.validation import Validation
from ssat_ray.training.world import World

RNG = torch.Generator().manual_seed(0)
IMAGES = torch.randint(0, 256, (37, 1, 8, 8), dtype=torch.uint8, generator=RNG)
LABELS = torch.randint(0, 10, (37,), generator=RNG)


class ShapeSees(nn.Module):
    """Stands for a library whose rounding depends on the shape of a batch: here every logit does."""

    def __init__(self) -> None:
        super().__init__()
        self.model = build_classifier(ModelConfig(widths=(4, 8), strides=(1, 2)), (1, 8, 8), 10, 0)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        return logits * (1 + len(x) / 1000)


def _validation(world: World, norm: str = "linf") -> Validation:
    threat = ThreatConfig(norm=norm, eps=0.1)
    return Validation((IMAGES, LABELS), threat, 3, 8, world, Engine())


def _all_logits(size: int, norm: str) -> tuple[Tensor, list[int]]:
    """(2, N, K) of all ranks in the order of the images, and the rows of each block."""
    model, found = ShapeSees(), []
    for rank in range(size):
        found += list(_validation(World(rank, size), norm).logits(model))
    found.sort(key=lambda block: block[0].start)
    return torch.cat([logits for _, logits in found], dim=1), [len(v[0]) for _, v in found]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("size", [2, 3, 7])
def test_the_number_of_ranks_changes_no_bit(size: int, norm: str) -> None:
    (alone, sizes), (together, _) = _all_logits(1, norm), _all_logits(size, norm)
    assert sizes == [8, 8, 8, 8, 5] and alone.shape == (2, 37, 10)
    assert not torch.equal(alone[0], alone[1]), "the attack does nothing"
    assert torch.equal(together, alone)
    flags, expected = (v.argmax(2) == LABELS for v in (together, alone))
    assert torch.equal(flags, expected)


def test_accuracies_are_those_of_the_logits() -> None:
    model = ShapeSees()
    logits, _ = _all_logits(1, "linf")
    right = (logits.argmax(2) == LABELS).double().mean(1)
    assert _validation(World()).accuracies(model) == pytest.approx((100 * right).tolist())
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert torch.is_grad_enabled()
