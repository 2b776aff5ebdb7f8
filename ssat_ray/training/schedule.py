"""Learning rate and stopping: a plateau rule without a horizon (method, section 7), and schedules with one."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from torch.optim import Optimizer

from ssat_ray.config import IntermediateConfig, TrainConfig

ONECYCLE_START = 1 / 25
ONECYCLE_END = ONECYCLE_START / 1e4
"""Rates at both ends of the one-cycle schedule over its peak: PyTorch's defaults."""
MULTISTEP_GAMMA = 0.1


@dataclass
class PlateauRule:
    """Stops when the mean of the last 3 evaluations has not risen by `delta` for `patience` evaluations.

    After that, or at `max_steps`, the cool-down of `cooldown_fraction` of the steps run so far begins.
    Accuracies are in percent, `delta` in points. With `delta` 0 the mean must rise above its best all the
    same: an equal one is no rise.
    """

    delta: float
    patience: int
    max_steps: int
    cooldown_fraction: float
    window: int = 3
    history: list[tuple[int, float]] = field(default_factory=list)
    best: float = float("-inf")
    waited: int = 0
    plateau_step: int | None = None

    def observe(self, step: int, accuracy: float) -> None:
        """Take the validation accuracy (percent) after `step` steps of the constant phase."""
        self.history.append((step, accuracy))
        if self.plateau_step is not None:
            return
        if len(self.history) >= self.window:
            mean = sum(a for _, a in self.history[-self.window :]) / self.window
            if mean > self.best and mean >= self.best + self.delta:
                self.best, self.waited = mean, 0
            else:
                self.waited += 1
        if self.waited >= self.patience or step >= self.max_steps:
            self.plateau_step = step

    @property
    def last_step(self) -> int | None:
        """Steps in all, cool-down included, once the plateau is known."""
        if self.plateau_step is None:
            return None
        return self.plateau_step + max(1, round(self.cooldown_fraction * self.plateau_step))

    @property
    def expected_steps(self) -> int:
        """Steps in all as far as they are known: at most so many before the plateau."""
        return self.last_step or self.max_steps + round(self.max_steps * self.cooldown_fraction)

    @property
    def hit_max_steps(self) -> bool:
        """Whether the constant phase ended by `max_steps`, not by a plateau."""
        return self.plateau_step is not None and self.waited < self.patience

    def lr_factor(self, step: int, warmup_steps: int) -> float:
        """Factor of the rate for step `step` (0-based)."""
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        last = self.last_step
        if self.plateau_step is None or last is None or step < self.plateau_step:
            return 1.0
        return (last - step) / (last - self.plateau_step)

    def state(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def restore(cls, state: dict[str, Any]) -> PlateauRule:
        return cls(**{**state, "history": [(int(s), float(a)) for s, a in state["history"]]})


@dataclass(frozen=True)
class FixedRule:
    """A schedule whose length is known: it ends after `num_steps`, whatever validation says.

    Args:
        name: `decay` (constant, then linear to 0), or a published recipe's schedule.
        num_steps: steps of the run.
        pct_start: see `onecycle_lr_factor`. milestones: see `multistep_lr_factor`.
    """

    name: Literal["decay", "onecycle", "cosine", "multistep"]
    num_steps: int
    pct_start: float = 0.0
    milestones: tuple[float, ...] = ()

    def observe(self, step: int, accuracy: float) -> None:
        """Take note of nothing: validation does not end such a run."""

    @property
    def last_step(self) -> int:
        return self.num_steps

    @property
    def expected_steps(self) -> int:
        return self.num_steps

    @property
    def max_steps(self) -> int:
        return self.num_steps

    @property
    def plateau_step(self) -> None:
        return None

    @property
    def hit_max_steps(self) -> bool:
        return False

    def lr_factor(self, step: int, warmup_steps: int) -> float:
        """Factor of the rate for step `step` (0-based); `onecycle` has a warm-up of its own."""
        match self.name:
            case "onecycle":
                return onecycle_lr_factor(step, self.num_steps, self.pct_start)
            case "cosine":
                return cosine_lr_factor(step, self.num_steps, warmup_steps)
            case "multistep":
                return multistep_lr_factor(step, self.num_steps, warmup_steps, self.milestones)
        return fixed_lr_factor(step, self.num_steps, warmup_steps)

    def state(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def restore(cls, state: dict[str, Any]) -> FixedRule:
        return cls(**{**state, "milestones": tuple(state["milestones"])})


def rule_of(config: TrainConfig | IntermediateConfig, num_labelled: int) -> PlateauRule | FixedRule:
    """The rule that a section asks for, on `num_labelled` labelled training images."""
    if isinstance(config, IntermediateConfig):
        return FixedRule("decay", config.num_steps)
    if config.schedule == "plateau":
        return PlateauRule(
            config.delta, config.patience, config.max_steps, config.cooldown_fraction
        )
    steps = config.num_steps
    if steps is None:
        assert config.num_epochs is not None  # the configuration has one of the two
        steps = config.num_epochs * steps_per_epoch(num_labelled, config.batch_size)
    return FixedRule(config.schedule, steps, config.pct_start, config.milestones)


def steps_per_epoch(num_labelled: int, batch_size: int) -> int:
    """ceil(labelled images / batch): the epoch of the published recipes, whatever the pool's size.

    The batch is the whole one, pool images included, so an epoch passes the labelled images once only
    where there is no pool: with a share u of the batch from the pool it passes 1 - u of them.

    Source: Carmon et al. 2019, code; method.md section 4.
    """
    return -(-num_labelled // batch_size)


def fixed_lr_factor(
    step: int, num_steps: int, warmup_steps: int, decay_fraction: float = 0.4
) -> float:
    """Warm-up, constant, then linear to 0 over the last `decay_fraction` of a fixed number of steps."""
    warm = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    return warm * min(1.0, (num_steps - step) / max(1.0, decay_fraction * num_steps))


def onecycle_lr_factor(step: int, num_steps: int, pct_start: float) -> float:
    """Up from 1/25 to 1 in the first `pct_start` of the run, then down to 1/250,000, both along cosines.

    The same as `torch.optim.lr_scheduler.OneCycleLR` at step `step` (0-based) of `total_steps=num_steps`.

    Source: Smith and Topin 2017, in PyTorch's form with cosine annealing.
    """
    peak, last = pct_start * num_steps - 1, num_steps - 1
    if step <= peak and peak > 0:
        return _cosine(ONECYCLE_START, 1.0, step / peak)
    return _cosine(1.0, ONECYCLE_END, (step - peak) / (last - peak) if last > peak else 0.0)


def cosine_lr_factor(step: int, num_steps: int, warmup_steps: int) -> float:
    """Linear warm-up, then along a half cosine to 0 after step `num_steps` - 1 (0-based).

    Source: Loshchilov and Hutter 2017, without restarts.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return _cosine(1.0, 0.0, (step - warmup_steps) / (num_steps - warmup_steps))


def multistep_lr_factor(
    step: int, num_steps: int, warmup_steps: int, milestones: tuple[float, ...]
) -> float:
    """Linear warm-up, then constant, a tenth from each milestone on; milestones are shares of the run."""
    warm = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    passed = sum(step >= round(share * num_steps) for share in milestones)
    return warm * MULTISTEP_GAMMA**passed


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


def set_lr(optimiser: Optimizer, lr: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = lr
