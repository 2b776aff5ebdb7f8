"""Sums of gradients over micro-batches: right, and in float64 the same bits in any order.

Sums over ranks are in test_world.py, where real processes exchange them.
"""

import itertools

import torch
from torch import nn

from ssat_ray.training.gradients import GradientSum
from ssat_ray.training.world import World


class Scaled(nn.Module):
    """Gradient of `a` is the sum of the inputs; `b` has none."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.a * x).sum()


def _summed(parts: list[torch.Tensor], exact: bool) -> torch.Tensor:
    module = Scaled()
    gradients = GradientSum(module, World(), exact)
    for _ in range(2):  # the second step must not see the first one's
        for i, part in enumerate(parts):
            with gradients.micro_batch(i == 0, i == len(parts) - 1) as used:
                used(part).backward()
    assert module.a.grad is not None and module.b.grad is None
    return module.a.grad


def test_exact_sums_do_not_depend_on_the_order() -> None:
    rng = torch.Generator().manual_seed(0)
    parts = [torch.randn(3, generator=rng) * 10.0**k for k in (0, 3, -3, 1, 2)]
    expected = torch.stack(parts).double().sum(0).float()
    orders = list(itertools.permutations(parts))
    assert all(torch.equal(_summed(list(order), True), expected) for order in orders)
    rounded = {tuple(_summed(list(order), False).tolist()) for order in orders}
    assert len(rounded) > 1, "in float32 the order shows"
    for found in rounded:
        torch.testing.assert_close(torch.tensor(found), expected)


def test_one_micro_batch_is_left_as_it_is() -> None:
    x = torch.tensor([0.1, 0.2, 0.3])
    for exact in (True, False):
        assert torch.equal(_summed([x], exact), x)
