"""Objectives' modules: what they pass on, and the training attack's side effects."""

from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssat_ray.adversarial.attacks import random_start
from ssat_ray.adversarial.losses import pgd_at_loss, trades_loss
from ssat_ray.adversarial.objectives import (
    AdversarialObjective,
    CleanObjective,
)
from ssat_ray.data.augment import Mix

Y = torch.tensor([2, -1, 0, 1, -1])
WEIGHTS = torch.tensor([0.5, 2.0, 1.5, 0.0, 3.0], dtype=torch.float64)
MIX = Mix(torch.tensor([1, -1, 0, 2, -1]), torch.tensor([0.25, 0.5, 0.9, 1.0, 0.0]))


def _soft_labels(y: Tensor, mix: Mix) -> Tensor:
    """One distribution over the classes a row, from both of its labels."""
    share = mix.share.double()[:, None]
    first, second = (F.one_hot(v.clamp(min=0), 3) for v in (y, mix.labels))
    return share * first + (1 - share) * second


class Net(nn.Module):
    """Convolution, BatchNorm, dropout and a linear layer; counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(16, 3)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        logits: Tensor = self.head(self.drop(torch.tanh(self.norm(self.conv(x)))).flatten(1))
        return logits


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    model = Net()
    model.norm.running_mean.uniform_(-0.1, 0.1)  # type: ignore[union-attr]
    return model.train()


def _batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(5, 2, 4, 4, generator=generator)
    return x, Y.clone(), torch.randn(5, 2, 4, 4, generator=generator)


ATTACK: dict[str, Any] = {"eps": 0.1, "step_size": 0.03, "num_steps": 4}


@pytest.mark.parametrize("name", ["trades", "pgd-at"])
def test_perturb_leaves_the_model_as_it_was(net: Net, name: Any) -> None:
    objective = AdversarialObjective(net, name=name, beta=6.0)
    net.conv.weight.requires_grad_(False)
    net.norm.eval()
    state = deepcopy(net.state_dict())
    flags = [m.training for m in net.modules()], [p.requires_grad for p in net.parameters()]
    x, y, noise = _batch()
    x_adv = objective.perturb(x, y, noise.clamp(-1, 1), **ATTACK)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert flags[0] == [m.training for m in net.modules()]
    assert flags[1] == [p.requires_grad for p in net.parameters()]
    assert all(p.grad is None for p in net.parameters())
    assert float((x_adv - x).abs().max()) <= 0.1 + 1e-6
    assert float(x_adv.min()) >= 0 and float(x_adv.max()) <= 1
    assert not x_adv.requires_grad and not torch.equal(x_adv, x)
    # Dropout and batch statistics would make a second call differ.
    assert torch.equal(x_adv, objective.perturb(x, y, noise.clamp(-1, 1), **ATTACK))


@pytest.mark.parametrize("name", ["trades", "pgd-at"])
def test_perturb_in_the_l2_ball(net: Net, name: Any) -> None:
    """On the sphere, along the gradient: the loss is higher there than at any of some random points."""
    objective = AdversarialObjective(net, name=name, beta=6.0, norm="l2")
    assert objective.noise_kind == "normal"
    x, y, noise = _batch()
    y = y.clamp(min=0)
    x_adv = objective.perturb(x, y, noise, eps=0.5, step_size=0.2, num_steps=8)
    length = (x_adv - x).flatten(1).norm(dim=1)
    assert bool((length <= 0.5 * (1 + 1e-5)).all()) and bool((length > 0.3).all())
    assert float(x_adv.min()) >= 0 and float(x_adv.max()) <= 1
    model = deepcopy(net).eval()

    def loss(images: Tensor) -> Tensor:
        if name == "pgd-at":
            return F.cross_entropy(model(images), y, reduction="none")
        p = model(x).softmax(1)
        return F.kl_div(model(images).log_softmax(1), p, reduction="none").sum(1)

    with torch.no_grad():
        for seed in range(5):
            generator = torch.Generator().manual_seed(seed)
            other = random_start(x, torch.randn(x.shape, generator=generator), 0.5, "l2")
            assert bool((loss(x_adv) > loss(other)).all())


def test_trades_perturb_equals_the_reference_loop_and_runs_the_clean_batch_once(net: Net) -> None:
    x, y, noise = _batch()
    objective = AdversarialObjective(net, name="trades", beta=6.0)
    assert objective.noise_kind == "normal"
    found = objective.perturb(x, y, noise, **ATTACK)
    assert net.calls == ATTACK["num_steps"] + 1
    model = deepcopy(net).eval()
    x_adv = (x + 0.001 * noise).clamp(0, 1)
    for _ in range(ATTACK["num_steps"]):
        x_adv = x_adv.detach().requires_grad_()
        p, q = F.softmax(model(x), dim=1), F.softmax(model(x_adv), dim=1)
        (gradient,) = torch.autograd.grad((p * (p.log() - q.log())).sum(), x_adv)
        x_adv = x_adv.detach() + ATTACK["step_size"] * gradient.sign()
        x_adv = torch.minimum(torch.maximum(x_adv, x - 0.1), x + 0.1).clamp(0, 1)
    # A gradient of the order of rounding may change its sign, so a few pixels may differ.
    assert float(((found - x_adv).abs() > 1e-5).float().mean()) < 0.02


def test_pgd_at_perturb_raises_ce_and_uses_the_prediction_without_a_label(net: Net) -> None:
    x, y, noise = _batch()
    u = noise.clamp(-1, 1)
    objective = AdversarialObjective(net, name="pgd-at", beta=0.0)
    assert objective.noise_kind == "uniform"
    with torch.no_grad():
        predicted = deepcopy(net).eval()(x).argmax(dim=1)
    filled = torch.where(y < 0, predicted, y)
    other = torch.where(y < 0, (predicted + 1) % 3, y)
    found = objective.perturb(x, y, u, **ATTACK)
    assert torch.equal(found, objective.perturb(x, filled, u, **ATTACK))
    assert not torch.equal(found, objective.perturb(x, other, u, **ATTACK))
    model = deepcopy(net).eval()
    with torch.no_grad():
        start = (x + 0.1 * u).clamp(0, 1)
        before = F.cross_entropy(model(start), filled, reduction="none")
        after = F.cross_entropy(model(found), filled, reduction="none")
    assert bool((after > before).all())


def test_perturb_of_mixed_rows_climbs_both_labels(net: Net) -> None:
    """One step against the gradient's sign at the start; TRADES has no use for labels."""
    x, y, noise = _batch()
    u, one = noise.clamp(-1, 1), {"eps": 0.1, "step_size": 0.03, "num_steps": 1}
    trades = AdversarialObjective(net, name="trades")
    assert torch.equal(
        trades.perturb(x, y, noise, mix=MIX, **one), trades.perturb(x, y, noise, **one)
    )
    found = AdversarialObjective(net, name="pgd-at").perturb(x, y, u, mix=MIX, **one)
    model = deepcopy(net).eval()
    soft = _soft_labels(y, MIX).float()
    soft[y < 0] = F.one_hot(model(x)[y < 0].argmax(1), 3).float()
    start = (x + 0.1 * u).clamp(0, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(-(soft * model(start).log_softmax(1)).sum(), start)
    expected = start.detach() + 0.03 * gradient.sign()
    expected = torch.minimum(torch.maximum(expected, x - 0.1), x + 0.1).clamp(0, 1)
    assert float(((found - expected).abs() > 1e-5).float().mean()) < 0.02


@pytest.mark.parametrize("name", ["trades", "pgd-at"])
def test_forward_passes_both_labels_on(net: Net, name: Any) -> None:
    net.drop.p = 0.0
    x, y, _ = _batch()
    z = deepcopy(net)(x)
    found, _ = AdversarialObjective(net, name=name, beta=0.0)(x, x, y, mix=MIX)
    assert found.item() == pytest.approx(pgd_at_loss(z, y, mix=MIX)[0].item(), rel=1e-6)


def test_forward_uses_separate_batchnorm_statistics(net: Net) -> None:
    net.drop.p = 0.0
    x, y, noise = _batch()
    x_adv = (x + 0.2 * noise).clamp(0, 1)
    twin = deepcopy(net)
    objective = AdversarialObjective(net, name="trades", beta=4.0, label_smoothing=0.1)
    loss, parts = objective(x, x_adv, y, WEIGHTS)
    z, z_adv = twin(x), twin(x_adv)
    expected, _ = trades_loss(z, z_adv, y, beta=4.0, label_smoothing=0.1, weights=WEIGHTS)
    assert torch.equal(loss, expected) and set(parts) == {"loss", "ce", "kl"}
    joint = deepcopy(net)(torch.cat([x, x_adv]))
    assert not torch.allclose(joint[:5], z, atol=1e-4)
    assert int(net.norm.num_batches_tracked) == 2  # type: ignore[arg-type]
    loss.backward()
    assert all(p.grad is not None for p in net.parameters())


def test_pgd_at_forward_and_clean_forward(net: Net) -> None:
    net.drop.p = 0.0
    x, y, noise = _batch()
    x_adv = (x + 0.2 * noise).clamp(0, 1)
    twin, twin_clean = deepcopy(net), deepcopy(net)
    loss, _ = AdversarialObjective(net, name="pgd-at", beta=0.0)(x, x_adv, y)
    assert torch.allclose(loss, F.cross_entropy(twin(x_adv), y, ignore_index=-1))
    assert net.calls == 1
    clean, parts = CleanObjective(twin_clean, label_smoothing=0.1)(x, y)
    reference = F.cross_entropy(twin(x), y, ignore_index=-1, label_smoothing=0.1)
    assert torch.allclose(clean, reference)
    assert float(parts["loss"]) == clean.item()


def test_settings_are_checked() -> None:
    model = nn.Flatten()
    with pytest.raises(ValueError, match="'mart'; allowed: trades, pgd-at"):
        AdversarialObjective(model, name="mart", beta=1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="norm is 'l1'; allowed: linf, l2"):
        AdversarialObjective(model, name="trades", norm="l1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="beta is -1"):
        AdversarialObjective(model, name="trades", beta=-1.0)
    with pytest.raises(ValueError, match="label_smoothing is 1"):
        CleanObjective(model, label_smoothing=1.0)
