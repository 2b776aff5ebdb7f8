"""The bench of the training step, tiny: both sides compute the same loss, and the lines say what they are."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from ssat_ray.bench import step
from ssat_ray.bench.textbook import trades_step
from ssat_ray.config import ModelConfig

TINY = step.Case(
    "tiny", ModelConfig(widths=(8, 16), strides=(1, 2)), (1, 8, 8), 16, "float32", bar=1.4
)


def test_the_lines() -> None:
    (line,) = step.run(2, (TINY,))
    assert line.what == "TRADES-10 step, tiny, batch 16, float32" and line.bar == 1.4
    assert len(line.ours) == len(line.bare) == 2 and min(line.ours + line.bare) > 0
    assert float(line.notes["loss difference"]) < 1e-5


def test_both_sides_train_alike() -> None:
    """From the same weights and noise the losses differ by the order of operations only."""
    ours = step.trainer(TINY)
    model = copy.deepcopy(ours.model)
    x, y, _ = ours.batch()
    noise = ours.attack_noise("normal", x.shape)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    objective = ours.task.objective
    found = trades_step(
        model,
        optimiser,
        x.contiguous(),
        y,
        noise.contiguous(),
        eps=ours.task.threat.eps,
        step_size=objective.step_size,
        num_steps=objective.num_steps,
        beta=objective.beta,
    )
    ours.advance()
    assert ours.mean_losses()["loss"] == pytest.approx(found, rel=1e-5)


def test_the_textbook_attack_raises_the_loss() -> None:
    losses = []
    for num_steps in (0, 10):
        ours = step.trainer(TINY)
        x, y, _ = ours.batch()
        optimiser = torch.optim.SGD(ours.model.parameters(), lr=0.0)
        settings = {"eps": 0.3, "step_size": 0.1, "num_steps": num_steps, "beta": 5.0}
        noise = ours.attack_noise("normal", x.shape)
        losses.append(trades_step(ours.model, optimiser, x, y, noise, **settings))
    assert losses[1] > losses[0] + 0.01


def test_a_bar_that_needs_amx_is_dropped_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "has_amx", lambda: False)
    case = dataclasses.replace(TINY, precision="bf16", needs_amx=True)
    (line,) = step.run(1, (case,))
    assert line.bar is None
