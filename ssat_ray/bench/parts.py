"""Where the time of a training step goes: feed, attack, loss and backward, update and average."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch

from ssat_ray.training.classifier import ClassifierTrainer

FEED, ATTACK, LOSS, UPDATE = "feed", "attack", "loss and backward", "update and average"


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Wall seconds of a call, the device's work included."""
    wait(device)
    start = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - start


def parts(trainer: ClassifierTrainer, steps: int) -> dict[str, float]:
    """Mean wall seconds of each part over so many steps; together they are the step's.

    The device is waited for before and after each part, which a step of the loop does not do: the sum is
    somewhat more than a step takes. Loss and backward have what the other parts leave.
    """
    device = trainer.engine.device
    found = dict.fromkeys((FEED, ATTACK, LOSS, UPDATE), 0.0)

    def timed(part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def measured(*args: Any, **kwargs: Any) -> Any:
            results: list[Any] = []
            found[part] += seconds(lambda: results.append(call(*args, **kwargs)), device)
            return results[0]

        return measured

    feed, update = trainer.feed, trainer.update
    with ExitStack() as stack:
        for owner, name, part in (
            (feed, "batch", FEED),
            (feed, "noise", FEED),
            (update, "perturb", ATTACK),
            (update, "apply", UPDATE),
        ):
            stack.enter_context(patch.object(owner, name, timed(part, getattr(owner, name))))
        total = sum(seconds(trainer.advance, device) for _ in range(steps))
    found[LOSS] = total - sum(found.values())
    return {part: value / steps for part, value in found.items()}


def notes(found: dict[str, float]) -> dict[str, str]:
    """Each part as a line of a bench notes it: seconds and share of the step."""
    total = sum(found.values())
    return {part: f"{value:.3g} s ({value / total:.0%})" for part, value in found.items()}
