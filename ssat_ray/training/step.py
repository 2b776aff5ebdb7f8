"""One optimisation step of a classifier: attack, loss, gradients over ranks and micro-batches, averages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ssat_ray.adversarial.attacks import NoiseKind
from ssat_ray.adversarial.losses import LossParts
from ssat_ray.adversarial.objectives import AdversarialObjective, CleanObjective
from ssat_ray.config import (
    IntermediateConfig,
    ObjectiveConfig,
    OptimiserConfig,
    ThreatConfig,
    TrainConfig,
)
from ssat_ray.data.augment import Mix
from ssat_ray.models.ema import EMA
from ssat_ray.training.batchnorm import end_micro_batch, grouped, update_running
from ssat_ray.training.feed import Batch
from ssat_ray.training.gradients import GradientSum
from ssat_ray.training.schedule import set_lr
from ssat_ray.training.world import World


@dataclass(frozen=True)
class Engine:
    """How a step is computed. Nothing here changes a step by more than rounding.

    Args:
        device: of the model and the images.
        exact: a forward and backward for each BatchNorm group, gradients summed in float64: on a CPU the
            weights are then the same bit for bit whatever the number of workers of as many threads.
        micro_batch: otherwise, the most rows of one forward and backward on a worker, rounded down to
            whole BatchNorm groups but one at least; None for all. Fewer rows need less memory.
        compile: `torch.compile` the model.
        channels_last: memory format of images and weights, otherwise contiguous.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    exact: bool = True
    micro_batch: int | None = None
    compile: bool = False
    channels_last: bool = True

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format


class TrainingStep:
    """A model with all that a step changes: optimiser, weight average, BatchNorm statistics.

    The loss is a mean over the global batch. Ranks and micro-batches divide by the global batch's sums, so
    that their gradients add up to its gradient however many labelled rows each holds. DDP sees one forward
    a micro-batch; the attack runs on the bare model.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TrainConfig | IntermediateConfig,
        objective: ObjectiveConfig,
        threat: ThreatConfig,
        world: World,
        engine: Engine,
        *,
        every_row_labelled: bool = False,
    ) -> None:
        self.config, self.attack, self.threat = config, objective, threat
        self.world, self.engine = world, engine
        model = model.to(engine.device, memory_format=engine.memory_format)  # type: ignore[call-overload]
        self.model = grouped(model, config.bn_group)
        self.ema = EMA(self.model, config.ema_decay)
        if engine.compile:
            self.model.compile()  # type: ignore[no-untyped-call]
        self.objective: AdversarialObjective | CleanObjective = CleanObjective(self.model)
        if isinstance(config, TrainConfig):
            self.objective = AdversarialObjective(
                self.model,
                name=objective.name,
                beta=objective.beta,
                label_smoothing=objective.label_smoothing,
                norm=threat.norm,
                every_row_labelled=every_row_labelled,
            )
        self.gradients = GradientSum(self.objective, world, engine.exact)
        self.optimiser = sgd(self.model, config)

    @property
    def noise_kind(self) -> NoiseKind | None:
        """Which noise a step needs; None without an attack."""
        if isinstance(self.objective, AdversarialObjective):
            return self.objective.noise_kind
        return None

    def __call__(self, batch: Batch, noise: Tensor | None, lr: float) -> LossParts:
        """One step on this rank's rows; returns its share of the losses, whose sum over ranks is the loss.

        Nothing here waits for the device.
        """
        set_lr(self.optimiser, lr)
        parts: LossParts = {}
        slices = list(self._micro_batches(len(batch.x)))
        for i, rows in enumerate(slices):
            part = batch.rows(rows)
            inputs: tuple[Tensor, ...] = (part.x,)
            if noise is not None:
                inputs += (self.perturb(part.x, part.y, noise[rows], part.mix),)
            given: dict[str, Any] = {} if part.mix is None else {"mix": part.mix}
            torch.manual_seed((part.rng + part.first) % 2**63)  # a group's own draws
            with self.gradients.micro_batch(i == 0, i == len(slices) - 1) as module:
                with self.autocast():
                    loss, found = module(*inputs, part.y, weights=part.weights, of=part.of, **given)
                loss.backward()
            end_micro_batch(self.model)
            for name, value in found.items():
                parts[name] = parts[name] + value if name in parts else value
        self.apply(len(slices))
        return parts

    def apply(self, micro_batches: int) -> None:
        """Move weights, running statistics and averages by what so many micro-batches have left."""
        self.optimiser.step()
        num_groups = self.config.batch_size // self.config.bn_group
        update_running(self.model, self.world, num_groups, micro_batches)
        self.ema.update(self.model)

    def perturb(self, x: Tensor, y: Tensor, noise: Tensor, mix: Mix | None = None) -> Tensor:
        """Adversarial images (B, C, H, W) of the training attack, on the bare model."""
        assert isinstance(self.objective, AdversarialObjective)
        return self.objective.perturb(
            x,
            y,
            noise,
            eps=self.threat.eps,
            step_size=self.attack.step_size,
            num_steps=self.attack.num_steps,
            autocast=self.autocast,
            mix=mix,
        )

    def autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(
            self.engine.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"
        )

    def _micro_batches(self, rows: int) -> Iterator[slice]:
        group = size = self.config.bn_group
        if not self.engine.exact:
            size = max(group, (self.engine.micro_batch or rows) // group * group)
        for start in range(0, rows, size):
            yield slice(start, min(start + size, rows))


def sgd(model: nn.Module, config: OptimiserConfig) -> torch.optim.SGD:
    """SGD, by default Nesterov's; no weight decay on biases and BatchNorm."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    momentum = getattr(config, "momentum", 0.9)
    return torch.optim.SGD(
        [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ],
        lr=config.lr,
        momentum=momentum,
        nesterov=getattr(config, "nesterov", True) and momentum > 0,
    )
