"""Grouped BatchNorm against torch's own on each group, in one and in two dimensions, and its statistics."""

import copy

import pytest
import torch
from torch import Tensor, nn

from ssat_ray.errors import UserError
from ssat_ray.training.batchnorm import GroupedBatchNorm, grouped, update_running
from ssat_ray.training.world import World


def _images(seed: int, rows: int = 12) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    images = 3 * torch.randn(rows, 5, 4, 4, generator=rng) + 1
    return images.contiguous(memory_format=torch.channels_last)


def _norm(momentum: float | None = 0.1) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(5, eps=1e-3, momentum=momentum)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, 5))
        norm.bias.copy_(torch.linspace(-1, 1, 5))
    return norm


def _by_formula(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    dims = [d for d in range(x.ndim) if d != 1]
    shape = [1, -1] + [1] * (x.ndim - 2)
    mean, var = x.mean(dims, keepdim=True), x.var(dims, unbiased=False, keepdim=True)
    return (x - mean) / (var + norm.eps).sqrt() * norm.weight.view(shape) + norm.bias.view(shape)


def test_each_group_is_normalised_by_itself() -> None:
    norm, x = _norm(), _images(0).requires_grad_()
    ours = GroupedBatchNorm(norm, 4)
    found = ours(x)
    expected = torch.cat([_by_formula(part, norm) for part in x.split(4)])
    torch.testing.assert_close(found, expected)
    assert found.is_contiguous(memory_format=torch.channels_last)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    got = torch.autograd.grad((found * weights).sum(), [x, norm.weight, norm.bias])
    want = torch.autograd.grad((expected * weights).sum(), [x, norm.weight, norm.bias])
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_group_does_not_feel_the_rows_beside_it() -> None:
    ours, x = GroupedBatchNorm(_norm(), 4), _images(0)
    assert torch.equal(ours(x)[4:8], ours(x[4:8]))


@pytest.mark.parametrize("momentum", [0.1, 0.01, None])
def test_one_group_is_the_batchnorm_it_stands_for(momentum: float | None) -> None:
    norm = _norm(momentum)
    model = grouped(nn.Sequential(copy.deepcopy(norm)), 12)
    for seed in range(3):
        assert torch.equal(model(_images(seed)), norm(_images(seed)))
        update_running(model, World(), 1)
    for (key, value), want in zip(
        model.state_dict().items(), norm.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(value, want, msg=key)
    torch.testing.assert_close(model.eval()(_images(9)), norm.eval()(_images(9)))


def test_running_statistics_take_the_mean_over_groups_once_a_forward() -> None:
    norm = _norm()
    model = grouped(nn.Sequential(norm), 3)
    clean, adversarial = _images(0), _images(1)
    mean, var = torch.zeros(5), torch.ones(5)
    model(clean)
    model(adversarial)
    assert float(norm.running_mean.abs().max()) == 0, "only update_running moves them"
    update_running(model, World(), 4)
    for x in (clean, adversarial):
        parts = [part.transpose(0, 1).flatten(1) for part in x.split(3)]
        mean = 0.9 * mean + 0.1 * torch.stack([p.mean(1) for p in parts]).mean(0)
        var = 0.9 * var + 0.1 * torch.stack([p.var(1) for p in parts]).mean(0)
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, var)
    assert int(model[0].num_batches_tracked) == 2
    update_running(model, World(), 4)
    torch.testing.assert_close(norm.running_mean, mean)  # nothing is counted twice


def test_micro_batches_change_no_bit_of_the_statistics() -> None:
    states = []
    for sizes in ([12], [6, 6], [9, 3], [3, 3, 3, 3]):
        model = grouped(nn.Sequential(_norm()), 3)
        for parts in zip(_images(0).split(sizes), _images(1).split(sizes), strict=True):
            for part in parts:  # clean, then adversarial, in every micro-batch
                model(part)
        update_running(model, World(), 4, len(sizes))
        states.append(model.state_dict())
    for state in states[1:]:
        assert all(torch.equal(state[key], value) for key, value in states[0].items())


def test_every_batchnorm_is_replaced_and_names_and_tensors_stay() -> None:
    model = nn.Sequential(
        nn.Conv2d(5, 5, 1), nn.ModuleDict({"a": nn.BatchNorm2d(5), "b": nn.BatchNorm3d(2)})
    )
    own = nn.BatchNorm1d(3, affine=False, track_running_stats=False)
    model.add_module("own", own)
    before = model.state_dict(keep_vars=True)
    after = grouped(model, 2).state_dict(keep_vars=True)
    assert list(before) == list(after) and all(after[k] is v for k, v in before.items())
    assert sum(isinstance(m, GroupedBatchNorm) for m in model.modules()) == 3
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.cat(
        [(p - p.mean(0)) / (p.var(0, unbiased=False) + 1e-5).sqrt() for p in x.split(2)]
    )
    torch.testing.assert_close(model.own(x), expected)
    update_running(model, World(), 2)
    assert grouped(model, 4).own.group_size == 4, "it can be grouped anew"


def test_what_cannot_be_grouped_is_refused() -> None:
    with pytest.raises(ValueError, match="10 rows are not whole BatchNorm groups of 4"):
        GroupedBatchNorm(_norm(), 4)(_images(0, 10))
    with pytest.raises(UserError, match="norm is a SyncBatchNorm"):
        grouped(nn.Sequential(nn.Module()).append(nn.ModuleDict({"norm": nn.SyncBatchNorm(2)})), 2)
