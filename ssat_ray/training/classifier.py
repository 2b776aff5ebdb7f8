"""Train a classifier: evaluate, save, step, log. Standard training for `intermediate`, SSAT for `train`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ssat_ray.adversarial.losses import LossParts
from ssat_ray.config import IntermediateConfig, ObjectiveConfig, ThreatConfig, TrainConfig
from ssat_ray.models.base import num_flops
from ssat_ray.training.feed import Feed
from ssat_ray.training.keep import Keeper
from ssat_ray.training.schedule import rule_of
from ssat_ray.training.sources import Images, Stream
from ssat_ray.training.state import Paused, States
from ssat_ray.training.step import Engine, TrainingStep
from ssat_ray.training.validation import Validation
from ssat_ray.training.world import World

Progress = Callable[[int, int, str], None]
"""Called with steps done, steps expected, and a note."""

VALIDATION_STEPS = 10


@dataclass(frozen=True)
class ClassifierTask:
    """One classifier to train.

    Args:
        model: the initial model, the same on every rank.
        optimiser: `TrainConfig` trains adversarially, to the plateau or as long as its schedule is;
            `IntermediateConfig` trains on clean images for a fixed number of steps.
        objective, threat: the adversarial objective and radius; the threat also sets validation.
        labelled, validation: real images.
        unlabelled: pool images with pseudo-labels, in memory or streamed, or None.
        seed: decides batches, augmentation and noise.
    """

    model: nn.Module
    optimiser: TrainConfig | IntermediateConfig
    objective: ObjectiveConfig
    threat: ThreatConfig
    labelled: Images
    validation: Images
    unlabelled: Images | Stream | None
    seed: int


class ClassifierTrainer:
    """The state of one training run, and the loop that advances it."""

    def __init__(self, task: ClassifierTask, world: World, engine: Engine | None = None) -> None:
        engine = engine or Engine()
        self.task, self.world, self.config, self.engine = task, world, task.optimiser, engine
        self.adversarial = isinstance(self.config, TrainConfig)
        channels, height, width = task.labelled[0].shape[1:]
        self.forward_flops = num_flops(task.model, (channels, height, width))  # still on the CPU
        self.feed = Feed(
            task.labelled,
            task.unlabelled,
            self.config,
            task.seed,
            world,
            engine.device,
            task.objective.pool_weight,
            engine.memory_format,
        )
        self.update = TrainingStep(
            task.model,
            self.config,
            task.objective,
            task.threat,
            world,
            engine,
            every_row_labelled=not self.feed.lacks_labels,
        )
        self.model, self.ema = self.update.model, self.update.ema
        self.optimiser = self.update.optimiser
        self.rule = rule_of(self.config, len(task.labelled[0]))
        self.keeper = Keeper.of(self.config)
        self.validation = Validation(
            task.validation,
            task.threat,
            getattr(self.config, "val_pgd_steps", VALIDATION_STEPS),
            self.config.batch_size,
            world,
            engine,
        )
        self.step = self.resumed_step = 0
        self.seconds = 0.0
        self.history: list[dict[str, float]] = []
        self.loss_sums: dict[str, Tensor] = {}
        self.loss_count = 0

    def advance(self) -> None:
        """One optimisation step on this rank's part of global batch `self.step`."""
        kind = self.update.noise_kind
        noise = None if kind is None else self.feed.noise(kind, self.step)
        lr = self.config.lr * self.lr_factor()
        self.collect(self.update(self.feed.batch(self.step), noise, lr))
        self.step += 1

    def lr_factor(self) -> float:
        return self.rule.lr_factor(self.step, self.config.warmup_steps)

    # -- what the log and the rule need ---------------------------------------------------------------

    def collect(self, parts: LossParts) -> None:
        """Sum losses, in float64, without reading them: no host synchronisation in the loop."""
        for name, value in parts.items():
            wide = value.double()
            self.loss_sums[name] = self.loss_sums[name] + wide if name in self.loss_sums else wide
        self.loss_count += 1

    def mean_losses(self) -> dict[str, float]:
        """Means since the last call over steps, of all ranks; FloatingPointError as `total_losses`."""
        means = {
            name: float(total / self.loss_count) for name, total in self.total_losses().items()
        }
        self.loss_sums, self.loss_count = {}, 0
        return means

    def total_losses(self) -> dict[str, Tensor]:
        """Sums over the steps since the last means, of all ranks.

        Raises:
            FloatingPointError: a loss was not finite, on every rank alike.
        """
        names = sorted(self.loss_sums)
        if not names:
            return {}
        sums = self.world.sum(torch.stack([self.loss_sums[name] for name in names]))
        if not bool(sums.isfinite().all()):
            raise FloatingPointError(
                f"the training loss became NaN or infinite before step {self.step} "
                f"(lr {self.config.lr}, precision {self.config.precision}); lower the learning rate."
            )
        return dict(zip(names, sums, strict=True))

    def validate(self) -> tuple[float, float]:
        """Clean and PGD accuracy (percent) of the averaged model on the validation images, in float32."""
        return self.validation.accuracies(self.ema.model)

    # -- the loop -------------------------------------------------------------------------------------

    @property
    def expected_steps(self) -> int:
        return self.rule.expected_steps

    @property
    def finished(self) -> bool:
        return self.rule.last_step is not None and self.step >= self.rule.last_step

    def run(
        self,
        states: States,
        due: Callable[[int], bool],
        progress: Progress,
        pause: int | None = None,
    ) -> dict[str, Any]:
        """Train to the end, going on from the last of `states` if there is one. Returns the result.

        A state is saved after every step, told as their number, that is `due`.

        Raises:
            Paused: `pause` steps were validated, and more are to come; the state is saved.
        """
        self.restore(states.load(self.world))
        self.resumed_step = self.step
        every = (
            self.config.eval_every
            if isinstance(self.config, TrainConfig)
            else self.config.num_steps
        )
        started = time.perf_counter() - self.seconds
        while not self.finished:
            if pause is not None and self.history and self.history[-1]["step"] >= pause:
                self.seconds = time.perf_counter() - started
                self.save(states)
                raise Paused(self.history)
            self.advance()
            if self.step % every == 0 or self.step == self.rule.max_steps or self.finished:
                losses = self.mean_losses()
                clean, robust = self.validate()
                self.rule.observe(self.step, robust)
                self.keeper.observe(self.step, robust, self.ema.model)
                self.seconds = time.perf_counter() - started
                row = {
                    "step": self.step,
                    "seconds": self.seconds,
                    "lr": self.optimiser.param_groups[0]["lr"],
                }
                self.history.append({**row, **losses, "val_clean": clean, "val_pgd": robust})
                note = f"loss {losses['loss']:.3f}  val {clean:.1f}/{robust:.1f} %"
                progress(self.step, self.expected_steps, note)
            elif self.step % 10 == 0:
                progress(self.step, self.expected_steps, "")
            if due(self.step) and not self.finished:
                self.seconds = time.perf_counter() - started
                self.save(states)
        self.keeper.put_into(self.ema.model)
        self.seconds = time.perf_counter() - started
        return self.result()

    def result(self) -> dict[str, Any]:
        kept = self.keeper.kept(self.history)
        units = self.step * self.config.batch_size * self.forward_units()
        return {
            "steps": self.step,
            "resumed_step": self.resumed_step,
            "plateau_step": self.rule.plateau_step,
            "hit_max_steps": self.rule.hit_max_steps,
            "seconds": self.seconds,
            "flops": units * self.forward_flops,
            "kept_step": kept["step"],
            "val_clean": kept["val_clean"],
            "val_pgd": kept["val_pgd"],
            "history": self.history,
        }

    def forward_units(self) -> int:
        """Cost of a step in forward passes: a backward over inputs counts 1, over all 2."""
        if not self.adversarial:
            return 3
        attack = 2 * self.task.objective.num_steps
        if self.task.objective.name == "trades":
            return attack + 1 + 2 * 3
        predicting = int(self.feed.lacks_labels)  # what is attacked where there is no label
        return attack + predicting + 3

    # -- state ----------------------------------------------------------------------------------------

    def save(self, states: States) -> None:
        """Write the state of the run; all ranks call, the first writes. FloatingPointError as `total_losses`."""
        losses = self.total_losses()
        if self.world.rank == 0:
            state = {
                "step": self.step,
                "seconds": self.seconds,
                "model": self.model.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "ema": self.ema.model.state_dict(),
                "ema_updates": self.ema.num_updates,
                "rule": self.rule.state(),
                "keeper": self.keeper.state(),
                "history": self.history,
                "loss_sums": losses,
                "loss_count": self.loss_count,
            }
            states.save(self.step, state)

    def restore(self, state: dict[str, Any] | None) -> None:
        """Take up a saved state. Batches and noise are functions of the step, so no RNG is needed."""
        if state is None:
            return
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.ema.model.load_state_dict(state["ema"])
        self.ema.num_updates = state["ema_updates"]
        self.rule = self.rule.restore(state["rule"])
        self.keeper.restore(state["keeper"])
        for name in ("step", "seconds", "history", "loss_count"):
            setattr(self, name, state[name])
        self.loss_sums = {  # of all ranks: the others begin at nothing
            name: value.to(self.engine.device) * (self.world.rank == 0)
            for name, value in state["loss_sums"].items()
        }
