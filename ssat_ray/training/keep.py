"""Which averaged model a run ends with: the last one, or the best of its evaluations."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from ssat_ray.config import IntermediateConfig, TrainConfig


class Keeper:
    """Holds a copy of the averaged model with the highest validation PGD accuracy; of equals the earlier.

    With `last` it holds nothing, and the run's last model is what is kept.

    Args:
        keep: `best` or `last`.
    """

    def __init__(self, keep: Literal["best", "last"]) -> None:
        self.keep = keep
        self.step: int | None = None
        self.robust = float("-inf")
        self.weights: dict[str, Tensor] | None = None

    @classmethod
    def of(cls, config: TrainConfig | IntermediateConfig) -> Keeper:
        """What a section asks for: by default the best where the schedule has an end, otherwise the last."""
        if isinstance(config, IntermediateConfig):
            return cls("last")
        return cls(config.keep or ("last" if config.schedule == "plateau" else "best"))

    @torch.no_grad()
    def observe(self, step: int, robust: float, model: nn.Module) -> None:
        """Take the averaged model after `step` steps and its validation PGD accuracy (percent)."""
        if self.keep == "best" and robust > self.robust:
            self.step, self.robust = step, robust
            self.weights = {key: value.clone() for key, value in model.state_dict().items()}

    def kept(self, history: list[dict[str, float]]) -> dict[str, float]:
        """The evaluation of the kept model, of all evaluations."""
        if self.step is None:
            return history[-1]
        return next(row for row in history if row["step"] == self.step)

    def put_into(self, model: nn.Module) -> None:
        """Give `model`, the averaged one, the weights and buffers to keep."""
        if self.weights is not None:
            model.load_state_dict(self.weights)

    def state(self) -> dict[str, Any]:
        """All of it, for the training state: a resumed run keeps what the undisturbed one would."""
        return {"step": self.step, "robust": self.robust, "weights": self.weights}

    def restore(self, state: dict[str, Any]) -> None:
        self.step, self.robust, self.weights = state["step"], state["robust"], state["weights"]
