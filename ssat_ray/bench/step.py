"""A TRADES-10 training step of the product against the textbook's, on the same model and batch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from ssat_ray.bench.measure import Comparison, alternate
from ssat_ray.bench.parts import notes, parts
from ssat_ray.bench.textbook import trades_step
from ssat_ray.config import ModelConfig, ObjectiveConfig, ThreatConfig, TrainConfig
from ssat_ray.models.registry import build_classifier
from ssat_ray.training.classifier import ClassifierTask, ClassifierTrainer
from ssat_ray.training.schedule import set_lr
from ssat_ray.training.step import Engine
from ssat_ray.training.world import World

THREADS = 2


@dataclass(frozen=True)
class Case:
    """A model, a batch and a precision.

    Args:
        bar: holds only where `needs_amx` is met.
        bn_group: images of a BatchNorm group; None: the batch, or a rank's part of it.
    """

    name: str
    model: ModelConfig
    image_shape: tuple[int, int, int]
    batch_size: int
    precision: Literal["float32", "bf16"]
    bar: float | None
    needs_amx: bool = False
    bn_group: int | None = None


WRN = ("WRN-16-4", ModelConfig(name="wrn-16-4-silu"), (3, 32, 32), 64)
DIGITS = ("digits net", ModelConfig(), (1, 8, 8), 256)
CASES = (
    Case(*WRN, "float32", 1.4),
    Case(*WRN, "bf16", 4.0, needs_amx=True),
    Case(*DIGITS, "float32", None),
    Case(*DIGITS, "float32", None, bn_group=64),
    Case(*DIGITS, "bf16", 2.0, needs_amx=True),
)


def run(repeats: int = 5, cases: tuple[Case, ...] = CASES) -> list[Comparison]:
    """One line a case: seconds of a step, both sides with two threads, the same weights and images.

    Ours is `ClassifierTrainer.advance`: the batch cut from uint8 images, augmentation, attack, loss,
    optimiser and weight average. The textbook's gets its batch and noise ready-made, and has no average.
    Noted: seconds and shares of our step's parts; and relative difference of the losses of a first step from
    the same noise, where our BatchNorm groups are the whole batch, as the textbook's.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        return [_compare(case, repeats) for case in cases]
    finally:
        torch.set_num_threads(before)


def trainer(
    case: Case, world: World | None = None, engine: Engine | None = None
) -> ClassifierTrainer:
    """The product's trainer on random images."""
    world = world or World()
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(
        0, 256, (4 * case.batch_size, *case.image_shape), dtype=torch.uint8, generator=rng
    )
    labelled = images, torch.randint(0, 10, (len(images),), generator=rng)
    return ClassifierTrainer(
        ClassifierTask(
            model=model_of(case),
            optimiser=TrainConfig(
                batch_size=case.batch_size,
                bn_group=case.bn_group or case.batch_size // world.size,
                precision=case.precision,
                lr=0.01,
                warmup_steps=0,
            ),
            objective=ObjectiveConfig(num_steps=10, step_size=0.007),
            threat=ThreatConfig(eps=8 / 255),
            labelled=labelled,
            validation=labelled,
            unlabelled=None,
            seed=0,
        ),
        world,
        engine,
    )


def model_of(case: Case) -> nn.Module:
    """The case's model, the same weights at each call."""
    return build_classifier(case.model, case.image_shape, 10, seed=0)


def title(case: Case) -> str:
    """What a line says of the case."""
    groups = "" if case.bn_group is None else f", BatchNorm groups of {case.bn_group}"
    return f"TRADES-10 step, {case.name}, batch {case.batch_size}, {case.precision}{groups}"


def _compare(case: Case, repeats: int) -> Comparison:
    ours = trainer(case)
    model = model_of(case).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    set_lr(optimiser, 0.01)
    batch = ours.feed.batch(0)
    x, y, noise = (t.contiguous() for t in (batch.x, batch.y, ours.feed.noise("normal", 0)))
    objective, eps = ours.task.objective, ours.task.threat.eps

    def bare() -> float:
        return trades_step(
            model,
            optimiser,
            x,
            y,
            noise,
            eps=eps,
            step_size=objective.step_size,
            num_steps=objective.num_steps,
            beta=objective.beta,
        )

    expected = bare()
    ours.advance()
    found = ours.mean_losses()["loss"]
    seconds = alternate({"ours": ours.advance, "bare": bare}, repeats)
    alike = {"loss difference": f"{abs(found - expected) / abs(expected):.1e}"}
    return Comparison(
        title(case),
        seconds["ours"],
        seconds["bare"],
        None if case.needs_amx and not has_amx() else case.bar,
        {**(alike if case.bn_group is None else {}), **notes(parts(ours, repeats))},
    )


def has_amx() -> bool:
    """Whether this CPU multiplies bf16 matrices in hardware (Intel AMX)."""
    info = Path("/proc/cpuinfo")
    return info.exists() and "amx_bf16" in info.read_text()
