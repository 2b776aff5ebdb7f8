"""Learning rate and stopping: warm-up, constant rate to the plateau, linear cool-down (method, section 7)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from torch.optim import Optimizer


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


def fixed_lr_factor(
    step: int, num_steps: int, warmup_steps: int, decay_fraction: float = 0.4
) -> float:
    """Warm-up, constant, then linear to 0 over the last `decay_fraction` of a fixed number of steps."""
    warm = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    return warm * min(1.0, (num_steps - step) / max(1.0, decay_fraction * num_steps))


def set_lr(optimiser: Optimizer, lr: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = lr
