"""The parts of a step: every call is in one of them, they add up, and a measured step is a step."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from ssat_ray.bench import step
from ssat_ray.bench.parts import notes, parts
from ssat_ray.config import ModelConfig
from ssat_ray.training.classifier import ClassifierTrainer

TINY = step.Case(
    "tiny", ModelConfig(widths=(8, 16), strides=(1, 2)), (1, 8, 8), 16, "float32", None, bn_group=8
)


@pytest.mark.parametrize(
    ("owner", "name", "part", "calls"),
    [
        ("feed", "batch", "feed", 1),
        ("feed", "noise", "feed", 1),
        ("update", "perturb", "attack", 2),
        ("gradients", "micro_batch", "loss and backward", 2),
        ("ema", "update", "update and average", 1),
        ("optimiser", "step", "update and average", 1),
    ],
)
def test_time_is_charged_to_its_part(
    monkeypatch: pytest.MonkeyPatch, owner: str, name: str, part: str, calls: int
) -> None:
    """On a clock that only the slow call moves. Two groups: two attacks and two backward passes a step."""
    now = 0.0
    ours = step.trainer(TINY)
    ours.advance()
    its = {"feed": ours.feed, "update": ours.update, "gradients": ours.update.gradients}
    its |= {"ema": ours.ema, "optimiser": ours.optimiser}
    plain = getattr(its[owner], name)

    def slow(*args: Any, **kwargs: Any) -> Any:
        nonlocal now
        now += 1.0
        return plain(*args, **kwargs)

    monkeypatch.setattr(its[owner], name, slow)
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    others = {"feed", "attack", "loss and backward", "update and average"} - {part}
    assert parts(ours, 2) == {part: calls, **dict.fromkeys(others, 0.0)}


def test_measuring_changes_no_step() -> None:
    trainers: list[ClassifierTrainer] = [step.trainer(TINY) for _ in range(2)]
    parts(trainers[0], 2)
    for _ in range(2):
        trainers[1].advance()
    first, second = (t.model.state_dict() for t in trainers)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert trainers[0].update.perturb.__name__ == "perturb", "the clock is gone again"


def test_notes_have_seconds_and_shares() -> None:
    found = {"feed": 0.1, "attack": 1.5, "loss and backward": 0.3, "update and average": 0.1}
    assert notes(found) == {
        "feed": "0.1 s (5%)",
        "attack": "1.5 s (75%)",
        "loss and backward": "0.3 s (15%)",
        "update and average": "0.1 s (5%)",
    }
