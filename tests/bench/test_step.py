"""The bench of the training step, tiny: both sides compute the same loss, and the lines say what they are."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from ssat_ray.bench import step
from ssat_ray.bench.textbook import trades_step
from ssat_ray.config import ModelConfig
from ssat_ray.training.batchnorm import GroupedBatchNorm

TINY = step.Case(
    "tiny", ModelConfig(widths=(8, 16), strides=(1, 2)), (1, 8, 8), 16, "float32", bar=1.4
)


def test_the_lines() -> None:
    (line,) = step.run(2, (TINY,))
    assert line.what == "TRADES-10 step, tiny, batch 16, float32" and line.bar == 1.4
    assert len(line.ours) == len(line.bare) == 2 and min(line.ours + line.bare) > 0
    assert float(line.notes["loss difference"]) < 1e-5
    assert {"feed", "attack", "loss and backward", "update and average"} < set(line.notes)


def test_a_line_of_smaller_groups_compares_no_losses() -> None:
    (line,) = step.run(1, (dataclasses.replace(TINY, bn_group=4),))
    assert line.what.endswith("float32, BatchNorm groups of 4")
    assert "loss difference" not in line.notes


def test_the_groups_are_those_of_the_case() -> None:
    for group, expected in ((None, {16}), (4, {4})):
        model = step.trainer(dataclasses.replace(TINY, bn_group=group)).model
        norms = [m for m in model.modules() if isinstance(m, GroupedBatchNorm)]
        assert len(norms) > 2 and {norm.group_size for norm in norms} == expected


def test_both_sides_train_alike() -> None:
    """From the same weights and noise the losses differ by the order of operations only.

    The textbook's BatchNorm is PyTorch's own, over its whole batch.
    """
    ours, model = step.trainer(TINY), step.model_of(TINY)
    assert not any(isinstance(m, GroupedBatchNorm) for m in model.modules())
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())
    batch, noise = ours.feed.batch(0), ours.feed.noise("normal", 0)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    objective = ours.task.objective
    found = trades_step(
        model,
        optimiser,
        batch.x.contiguous(),
        batch.y,
        noise.contiguous(),
        eps=ours.task.threat.eps,
        step_size=objective.step_size,
        num_steps=objective.num_steps,
        beta=objective.beta,
    )
    ours.advance()
    assert ours.mean_losses()["loss"] == pytest.approx(found, rel=1e-5)
    smaller = step.trainer(dataclasses.replace(TINY, bn_group=4))
    smaller.advance()
    assert smaller.mean_losses()["loss"] != pytest.approx(found, rel=1e-3)


def test_the_textbook_attack_raises_the_loss() -> None:
    losses = []
    for num_steps in (0, 10):
        ours = step.trainer(TINY)
        batch, noise = ours.feed.batch(0), ours.feed.noise("normal", 0)
        optimiser = torch.optim.SGD(ours.model.parameters(), lr=0.0)
        settings = {"eps": 0.3, "step_size": 0.1, "num_steps": num_steps, "beta": 5.0}
        losses.append(trades_step(ours.model, optimiser, batch.x, batch.y, noise, **settings))
    assert losses[1] > losses[0] + 0.01


def test_a_bar_that_needs_amx_is_dropped_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "has_amx", lambda: False)
    case = dataclasses.replace(TINY, precision="bf16", needs_amx=True)
    (line,) = step.run(1, (case,))
    assert line.bar is None
