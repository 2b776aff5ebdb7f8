"""One step: micro-batches, float32 against groups by hand, compiled, weight decay, frozen state."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ssat_ray.adversarial.losses import totals
from ssat_ray.config import (
    IntermediateConfig,
    ModelConfig,
    ObjectiveConfig,
    ThreatConfig,
    TrainConfig,
)
from ssat_ray.data.augment import Mix
from ssat_ray.models.registry import build_classifier
from ssat_ray.training.feed import Batch
from ssat_ray.training.step import Engine, TrainingStep, sgd
from ssat_ray.training.world import World

DECAY = 0.01


def _model() -> nn.Module:
    return build_classifier(ModelConfig(widths=(4, 8), strides=(1, 2)), (1, 8, 8), 10, 0)


def _config(**changes: object) -> TrainConfig:
    options = {"batch_size": 12, "bn_group": 4, "precision": "float32", "weight_decay": DECAY}
    return TrainConfig(**{**options, **changes})


def _step(engine: Engine, objective: str = "trades", **changes: object) -> TrainingStep:
    attack = ObjectiveConfig(name=objective, num_steps=2, step_size=0.05, beta=3.0)
    return TrainingStep(
        _model(), _config(**changes), attack, ThreatConfig(eps=0.1), World(), engine
    )


def _batch() -> tuple[Batch, Tensor]:
    rng = torch.Generator().manual_seed(1)
    x = torch.rand(12, 1, 8, 8, generator=rng).contiguous(memory_format=torch.channels_last)
    y = torch.tensor([3, -1, -1, -1, 1, 2, -1, 4, 5, 6, 7, 8])
    return Batch(x, y, (torch.tensor(8.0), torch.tensor(12.0))), torch.randn(x.shape, generator=rng)


def _gradient(step: TrainingStep) -> Tensor:
    return torch.cat([p.grad.flatten() for p in step.model.parameters()])  # type: ignore[union-attr]


ENGINES = {
    "exact": Engine(exact=True),
    "whole": Engine(exact=False),
    "two groups": Engine(exact=False, micro_batch=11),
    "one group": Engine(exact=False, micro_batch=1),
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", list(ENGINES))
def test_the_gradient_is_that_of_the_global_mean_with_batchnorm_by_group(
    name: str, weighted: bool
) -> None:
    """Groups hold different numbers of labelled rows, and different weights; the means are over all."""
    step, (batch, noise) = _step(ENGINES[name]), _batch()
    weights = torch.ones(12)
    if weighted:
        weights = torch.tensor([1.0, 1.0, 0.5, 0.5, 1.0, 0.5, 0.5, 0.5, 2.0, 2.0, 2.0, 3.0])
        batch = dataclasses.replace(batch, weights=weights, of=totals(batch.y, weights))
    reference = copy.deepcopy(_model())
    x_adv = step.perturb(batch.x, batch.y, noise)
    parts = step(batch, noise, lr=0.1)
    ce, kl = torch.zeros(()), torch.zeros(())
    for rows in (slice(0, 4), slice(4, 8), slice(8, 12)):
        z, z_adv = reference(batch.x[rows]), reference(x_adv[rows])
        each = F.cross_entropy(z, batch.y[rows], ignore_index=-1, reduction="none")
        ce = ce + (weights[rows] * each).sum()
        each = F.kl_div(z_adv.log_softmax(1), z.softmax(1), reduction="none").sum(1)
        kl = kl + (weights[rows] * each).sum()
    ce, kl = ce / weights[batch.y >= 0].sum(), kl / weights.sum()
    loss = ce + 3.0 * kl
    loss.backward()
    expected = torch.cat([p.grad.flatten() for p in reference.parameters()])
    torch.testing.assert_close(_gradient(step), expected, rtol=1e-4, atol=1e-6)
    assert float(parts["loss"]) == pytest.approx(loss.item(), rel=1e-5)
    assert float(parts["ce"]) == pytest.approx(ce.item(), rel=1e-5)
    assert float(parts["kl"]) == pytest.approx(kl.item(), rel=1e-4)
    assert step.ema.num_updates == 1


def test_the_running_statistics_do_not_depend_on_the_engine() -> None:
    found = []
    for engine in ENGINES.values():
        step = _step(engine)
        step(*_batch(), lr=0.1)
        found.append({k: v for k, v in step.model.state_dict().items() if "running" in k})
    assert len(found[0]) >= 10
    for state in found[1:]:
        for key, value in found[0].items():
            torch.testing.assert_close(state[key], value, rtol=1e-4, atol=1e-6, msg=key)


def test_the_memory_format_changes_no_more_than_rounding() -> None:
    found = []
    for channels_last in (True, False):
        step, (batch, noise) = _step(Engine(channels_last=channels_last)), _batch()
        fmt = step.engine.memory_format
        batch = dataclasses.replace(batch, x=batch.x.contiguous(memory_format=fmt))
        step(batch, noise.contiguous(memory_format=fmt), lr=0.1)
        weight = step.model.layer[1][0].conv_1.weight
        assert weight.is_contiguous(memory_format=torch.channels_last) == channels_last
        assert weight.is_contiguous() == (not channels_last)
        assert step.ema.model.layer[1][0].conv_1.weight.is_contiguous() == (not channels_last)
        found.append(step.model.state_dict())
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=1e-3, atol=1e-4, msg=key)


class NoHost(TorchDispatchMode):
    """Refuses what makes the host wait for a GPU: numbers and shapes that are read from tensors."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.nonzero.default,
            torch.ops.aten.equal.default,
        ), f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", list(ENGINES))
@pytest.mark.parametrize("objective", ["trades", "pgd-at"])
def test_a_step_never_waits_for_the_device(name: str, objective: str) -> None:
    step, (batch, noise) = _step(ENGINES[name], objective), _batch()
    weights, partner = torch.linspace(0.5, 2.0, 12), batch.y.flip(0)
    mix = Mix(torch.where(batch.y < 0, -1, partner.clamp(min=0)), torch.full((12,), 0.7))
    batch = dataclasses.replace(batch, mix=mix, weights=weights, of=totals(batch.y, weights))
    for _ in range(2):
        with NoHost():
            step(batch, noise, lr=0.1)
    with pytest.raises(AssertionError, match="waits"), NoHost():
        float(weights.sum())


def test_pgd_at_attacks_unlabelled_rows_by_their_prediction() -> None:
    step, (batch, noise) = _step(Engine(), "pgd-at"), _batch()
    with torch.no_grad():
        predicted = copy.deepcopy(step.model).eval()(batch.x).argmax(1)
    labels = torch.where(batch.y < 0, predicted, batch.y)
    assert torch.equal(step.perturb(batch.x, batch.y, noise), step.perturb(batch.x, labels, noise))


@pytest.mark.slow
def test_a_compiled_step_does_what_an_eager_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """aot_eager traces forward and backward as the default backend does, without a C++ compiler.

    However many micro-batches there are, it is traced a few times only. The average is not compiled.
    """
    asked, compile_by = [], torch.nn.Module.compile

    def without_a_compiler(model: torch.nn.Module, **options: object) -> None:
        asked.append((model, options))
        compile_by(model, backend="aot_eager")

    monkeypatch.setattr(torch.nn.Module, "compile", without_a_compiler)
    eager = _step(Engine(), bn_group=2)
    assert not asked
    compiled = _step(Engine(compile=True), bn_group=2)
    assert asked == [(compiled.model, {})]
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for _ in range(2):
            for step in (eager, compiled):
                step(*_batch(), lr=0.1)
    for key, value in eager.model.state_dict().items():
        torch.testing.assert_close(
            compiled.model.state_dict()[key], value, rtol=1e-4, atol=1e-5, msg=key
        )


def test_a_step_leaves_the_model_trainable_and_in_train_mode() -> None:
    step = _step(Engine(), precision="bf16")
    step(*_batch(), lr=0.1)
    assert step.model.training and all(p.requires_grad for p in step.model.parameters())
    assert all(p.dtype == torch.float32 for p in step.model.parameters())
    assert not step.ema.model.training


def test_weight_decay_spares_biases_and_batchnorm() -> None:
    model = _model()
    groups = sgd(model, _config(momentum=0.0)).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, plain = ({names[id(p)] for p in group["params"]} for group in groups)
    assert decayed == {n for n in names.values() if "conv" in n or "shortcut" in n} | {
        "logits.weight"
    }
    assert decayed | plain == set(names.values()) and not decayed & plain
    assert [g["weight_decay"] for g in groups] == [DECAY, 0.0] and not groups[0]["nesterov"]
    assert sgd(model, IntermediateConfig()).param_groups[0]["momentum"] == 0.9


@pytest.mark.parametrize("nesterov", [True, False])
def test_nesterov_is_a_setting(nesterov: bool) -> None:
    model = _model()
    groups = sgd(model, _config(nesterov=nesterov)).param_groups
    assert [g["nesterov"] for g in groups] == [nesterov] * 2
