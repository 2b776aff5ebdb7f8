"""Train a classifier: evaluate, save, step, log. Standard training for `intermediate`, SSAT for `train`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssat_ray.adversarial.attacks import RANDOM_NOISE, NoiseKind, frozen, pgd, random_start
from ssat_ray.adversarial.objectives import AdversarialObjective, CleanObjective, LossParts
from ssat_ray.config import (
    IntermediateConfig,
    ObjectiveConfig,
    OptimiserConfig,
    ThreatConfig,
    TrainConfig,
)
from ssat_ray.data.augment import Mix, augmented
from ssat_ray.data.batches import epoch_indices, generator, interleave
from ssat_ray.data.labelled import unit_float
from ssat_ray.models.base import num_flops
from ssat_ray.models.ema import EMA
from ssat_ray.training.keep import Keeper
from ssat_ray.training.schedule import rule_of, set_lr
from ssat_ray.training.state import load_state, save_state
from ssat_ray.training.world import World

Images = tuple[Tensor, Tensor]
"""(N, C, H, W) uint8 images and (N,) int64 labels, -1 = none."""
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
        labelled, validation: real images. unlabelled: pool images with pseudo-labels, or None.
        seed: decides batches, augmentation and noise.
        checkpoint_steps: steps between saved states.
    """

    model: nn.Module
    optimiser: TrainConfig | IntermediateConfig
    objective: ObjectiveConfig
    threat: ThreatConfig
    labelled: Images
    validation: Images
    unlabelled: Images | None
    seed: int
    checkpoint_steps: int = 50


class ClassifierTrainer:
    """The state of one training run and the step that advances it."""

    def __init__(self, task: ClassifierTask, world: World) -> None:
        self.task, self.world, self.config = task, world, task.optimiser
        self.model = task.model
        self.adversarial = isinstance(self.config, TrainConfig)
        if self.adversarial:
            self.objective: AdversarialObjective | CleanObjective = AdversarialObjective(
                self.model,
                name=task.objective.name,
                beta=task.objective.beta,
                label_smoothing=task.objective.label_smoothing,
                norm=task.threat.norm,
            )
        else:
            self.objective = CleanObjective(self.model)
        self.parallel = world.wrap(self.objective)
        self.optimiser = sgd(self.model, self.config)
        self.ema = EMA(self.model, self.config.ema_decay)
        self.rule = rule_of(self.config, len(task.labelled[0]))
        self.keeper = Keeper.of(self.config)
        self.step = 0
        self.seconds = 0.0
        self.history: list[dict[str, float]] = []
        self.loss_sums: dict[str, Tensor] = {}
        self.loss_count = 0

    # -- one step -------------------------------------------------------------------------------------

    def advance(self) -> None:
        """One optimisation step on this rank's part of global batch `self.step`."""
        set_lr(self.optimiser, self.config.lr * self.lr_factor())
        x, y, mix = self.batch()
        with torch.set_grad_enabled(True):
            if isinstance(self.objective, AdversarialObjective):
                x_adv = self.objective.perturb(
                    x,
                    y,
                    self.attack_noise(self.objective.noise_kind, x.shape),
                    eps=self.task.threat.eps,
                    step_size=self.task.objective.step_size,
                    num_steps=self.task.objective.num_steps,
                    autocast=self.autocast,
                    mix=mix,
                )
                with self.autocast():
                    loss, parts = self.parallel(x, x_adv, y, mix=mix)
            else:
                with self.autocast():
                    loss, parts = self.parallel(x, y)
            self.optimiser.zero_grad(set_to_none=False)
            loss.backward()
        self.optimiser.step()
        self.world.average_buffers(self.model)
        self.ema.update(self.model)
        self.collect(parts)
        self.step += 1

    def lr_factor(self) -> float:
        return self.rule.lr_factor(self.step, self.config.warmup_steps)

    def batch(self) -> tuple[Tensor, Tensor, Mix | None]:
        """This rank's rows of the global batch: float32 images in [0, 1], channels-last, and labels."""
        task, total, part = (
            self.task,
            self.config.batch_size,
            self.world.part(self.config.batch_size),
        )
        num_pool = 0
        if task.unlabelled is not None and isinstance(self.config, TrainConfig):
            num_pool = round(total * self.config.unsup_fraction)
        rows = epoch_indices(
            len(task.labelled[0]), total - num_pool, task.seed, "labelled", self.step
        )
        images, labels = task.labelled[0][rows], task.labelled[1][rows]
        if num_pool and task.unlabelled is not None:
            rows = epoch_indices(
                len(task.unlabelled[0]), num_pool, task.seed, "unlabelled", self.step
            )
            order = interleave(total - num_pool, num_pool)
            images = torch.cat([images, task.unlabelled[0][rows]])[order]
            labels = torch.cat([labels, task.unlabelled[1][rows]])[order]
        own, mix = augmented(
            lambda at: images[at], labels, part, self.config, seed=task.seed, step=self.step
        )
        x = unit_float(own).contiguous(memory_format=torch.channels_last)
        return x, labels[part], mix

    def attack_noise(self, kind: NoiseKind, shape: torch.Size) -> Tensor:
        """This rank's rows of the noise drawn for the whole global batch."""
        rng = generator(self.task.seed, "attack", self.step)
        noise = drawn(kind, (self.config.batch_size, *shape[1:]), rng)
        return noise[self.world.part(self.config.batch_size)].contiguous(
            memory_format=torch.channels_last
        )

    def autocast(self) -> AbstractContextManager[object]:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.config.precision == "bf16")

    # -- what the log and the rule need ---------------------------------------------------------------

    def collect(self, parts: LossParts) -> None:
        """Sum losses without reading them: no host synchronisation in the loop."""
        for name, value in parts.items():
            self.loss_sums[name] = (
                self.loss_sums[name] + value if name in self.loss_sums else value.clone()
            )
        self.loss_count += 1

    def mean_losses(self) -> dict[str, float]:
        """Means since the last call over steps and ranks.

        Raises:
            FloatingPointError: a loss was not finite, on every rank alike.
        """
        names = sorted(self.loss_sums)
        sums = self.world.sum(torch.stack([self.loss_sums[n] for n in names]).double())
        means = (sums / (self.loss_count * self.world.size)).tolist()
        self.loss_sums, self.loss_count = {}, 0
        if not all(math.isfinite(m) for m in means):
            raise FloatingPointError(
                f"the training loss became NaN or infinite before step {self.step} "
                f"(lr {self.config.lr}, precision {self.config.precision}); lower the learning rate."
            )
        return dict(zip(names, means, strict=True))

    def validate(self) -> tuple[float, float]:
        """Clean and PGD accuracy (percent) of the averaged model on the validation images, in float32."""
        images, labels = self.task.validation
        part = self.world.part(len(images))
        x = unit_float(images[part]).contiguous(memory_format=torch.channels_last)
        y, threat = labels[part], self.task.threat
        rng = generator(0, "evaluate", 0)
        noise = drawn(RANDOM_NOISE[threat.norm], images.shape, rng)[part]
        with frozen(self.ema.model) as model:
            x_adv = pgd(
                model,
                x,
                lambda logits: F.cross_entropy(logits, y, reduction="sum"),
                eps=threat.eps,
                step_size=threat.eps / 4,
                num_steps=getattr(self.config, "val_pgd_steps", VALIDATION_STEPS),
                start=random_start(x, noise, threat.eps, threat.norm),
                norm=threat.norm,
            )
            with torch.no_grad():
                right = torch.stack([(model(v).argmax(1) == y).sum() for v in (x, x_adv)]).double()
        clean, robust = (100 * self.world.sum(right) / len(images)).tolist()
        return clean, robust

    # -- the loop -------------------------------------------------------------------------------------

    @property
    def expected_steps(self) -> int:
        return self.rule.expected_steps

    @property
    def finished(self) -> bool:
        return self.rule.last_step is not None and self.step >= self.rule.last_step

    def run(self, folder: Path, progress: Progress) -> dict[str, Any]:
        """Train to the end, going on from the state in `folder` if there is one. Returns the result."""
        self.restore(load_state(folder))
        every = (
            self.config.eval_every
            if isinstance(self.config, TrainConfig)
            else self.config.num_steps
        )
        started = time.perf_counter() - self.seconds
        while not self.finished:
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
            if self.step % self.task.checkpoint_steps == 0 and not self.finished:
                self.seconds = time.perf_counter() - started
                self.save(folder)
        self.keeper.put_into(self.ema.model)
        self.seconds = time.perf_counter() - started
        return self.result()

    def result(self) -> dict[str, Any]:
        kept = self.keeper.kept(self.history)
        channels, height, width = self.task.labelled[0].shape[1:]
        forward = num_flops(self.model, (channels, height, width))
        return {
            "steps": self.step,
            "plateau_step": self.rule.plateau_step,
            "hit_max_steps": self.rule.hit_max_steps,
            "seconds": self.seconds,
            "flops": self.step * self.config.batch_size * forward * self.forward_units(),
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
        return attack + (1 + 2 * 3 if self.task.objective.name == "trades" else 3)

    # -- state ----------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        if self.world.rank == 0:
            save_state(
                folder,
                {
                    "step": self.step,
                    "seconds": self.seconds,
                    "model": self.model.state_dict(),
                    "optimiser": self.optimiser.state_dict(),
                    "ema": self.ema.model.state_dict(),
                    "ema_updates": self.ema.num_updates,
                    "rule": self.rule.state(),
                    "keeper": self.keeper.state(),
                    "history": self.history,
                    "loss_sums": self.loss_sums,
                    "loss_count": self.loss_count,
                },
            )

    def restore(self, state: dict[str, Any] | None) -> None:
        """Take up a saved state. Batches and noise are functions of the step, so no RNG is needed.

        The sums of losses are rank 0's; they feed the log only.
        """
        if state is None:
            return
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.ema.model.load_state_dict(state["ema"])
        self.ema.num_updates = state["ema_updates"]
        self.rule = self.rule.restore(state["rule"])
        self.keeper.restore(state["keeper"])
        for name in ("step", "seconds", "history", "loss_sums", "loss_count"):
            setattr(self, name, state[name])


def drawn(kind: NoiseKind, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Standard normal noise, or uniform in [-1, 1)."""
    if kind == "normal":
        return torch.randn(shape, generator=rng)
    return torch.rand(shape, generator=rng) * 2 - 1


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
