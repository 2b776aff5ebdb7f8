"""Weight averaging against a float64 loop of its definition."""

from math import comb

import pytest
import torch
from torch import nn

from ssat_ray.models.ema import EMA


def _model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 2))


def _drift(model: nn.Module, step: int) -> None:
    torch.manual_seed(100 + step)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
        model.train()(torch.randn(4, 1, 6, 6))  # moves the running statistics and the counter


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_equals_the_loop_batchnorm_and_integers_included(decay: float) -> None:
    model = _model()
    ema = EMA(model, decay)
    shadow = {k: v.double().clone() for k, v in model.state_dict().items()}
    for t in range(25):
        _drift(model, t)
        ema.update(model)
        rate = min(decay, (1 + t) / (10 + t))
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                shadow[key] = rate * shadow[key] + (1 - rate) * value.double()
            else:
                shadow[key] = value.double()
    assert ema.num_updates == 25
    found = ema.model.state_dict()
    assert int(found["1.num_batches_tracked"]) == 25
    assert float(
        (found["1.running_mean"] - model.state_dict()["1.running_mean"]).abs().max()
    ) > 0 or (decay == 0.0)
    for key, value in found.items():
        torch.testing.assert_close(value.double(), shadow[key], rtol=1e-5, atol=1e-6)


def test_the_ramp_has_a_closed_form() -> None:
    """Until the decay is reached, update s of T weighs C(s + 8, 8) / C(T + 9, 9), the start (s = 0) too.

    By the telescoping product of (1 + t) / (10 + t); the weights add up to 1.
    """
    model, num_updates = _model(), 30
    ema, states = EMA(model, 0.999), [{k: v.clone() for k, v in model.state_dict().items()}]
    for t in range(num_updates):
        _drift(model, t)
        ema.update(model)
        states.append({k: v.clone() for k, v in model.state_dict().items()})
    shares = [comb(s + 8, 8) / comb(num_updates + 9, 9) for s in range(num_updates + 1)]
    assert sum(shares) == pytest.approx(1)
    for key, value in ema.model.state_dict().items():
        if value.is_floating_point():
            expected = sum(w * state[key].double() for w, state in zip(shares, states, strict=True))
            torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)


def test_beyond_the_ramp_the_decay_is_constant() -> None:
    """decay 0.5 is reached after 8 updates; then n updates towards one model leave 0.5 ** n of the past."""
    ema, other = EMA(_model(0), 0.5), _model(1)
    for t in range(8):
        _drift(ema_source := _model(2 + t), t)
        ema.update(ema_source)
    before = {k: v.clone() for k, v in ema.model.state_dict().items()}
    for _ in range(5):
        ema.update(other)
    for key, value in ema.model.state_dict().items():
        if value.is_floating_point():
            expected = 0.5**5 * before[key] + (1 - 0.5**5) * other.state_dict()[key]
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


def test_a_decay_of_0_is_no_average() -> None:
    model = _model()
    ema = EMA(model, 0.0)
    for t in range(3):
        _drift(model, t)
        ema.update(model)
        for a, b in zip(ema.model.state_dict().values(), model.state_dict().values(), strict=True):
            assert torch.equal(a, b)


def test_a_constant_model_is_a_fixed_point() -> None:
    model = _model()
    ema = EMA(model, 0.9)
    for _ in range(20):
        ema.update(model)
    for a, b in zip(ema.model.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_the_shadow_is_a_frozen_copy_in_eval_mode() -> None:
    model = _model().train()
    ema = EMA(model, 0.9)
    assert not any(m.training for m in ema.model.modules()) and model.training
    assert not any(p.requires_grad for p in ema.model.parameters())
    assert all(p.requires_grad for p in model.parameters())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    shadow = {k: v.clone() for k, v in ema.model.state_dict().items()}
    with torch.no_grad():
        model[0].weight.zero_()
    assert torch.equal(ema.model[0].weight, shadow["0.weight"])
    ema.update(model)
    assert torch.equal(model[0].weight, torch.zeros_like(before["0.weight"]))
    assert torch.equal(model[3].weight, before["3.weight"])
