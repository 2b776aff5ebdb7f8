"""What a run over a target will take, from what a small one took: plain arithmetic (docs/plan.md)."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

GIB = 2**30


@dataclass(frozen=True)
class PerImage:
    """Wall seconds an image, by what they grow with: pixels, the model's FLOPs, or neither."""

    pixels: float = 0.0
    flops: float = 0.0
    other: float = 0.0

    def at(self, pixels: float, flops: float, gpus: float = 1.0) -> float:
        """Seconds for images of so many times the pixels and FLOPs, the model on so many times the GPUs."""
        return self.pixels * pixels + self.flops * flops / gpus + self.other


@dataclass(frozen=True)
class StageCost:
    """What a stage took, as a start and two slopes.

    Attributes:
        stage: its name.
        once: wall seconds of a session whatever the pool: actors, worker groups.
        per_seed: wall seconds of each seed whatever the pool: a fit on the sample, a training.
        per_image, per_refined: of each pool image, and of each image that the clusters are refined on.
        session_bytes: peak memory of the session while it ran.
        growing_bytes: the same at the moment when it held what grows; None: at its peak.
        images, refined: of the measured pool, to which both belong.
        bytes_per_image, bytes_per_refined: memory that grows with the images.
        loaded_share, loaded_most: share of the pool that a training loads, and most images of it at a time.
        loaded_bytes: of such an image, in all workers.
        actor_bytes: peak PSS of one actor or task.
        actors: that share the memory which grows.
        disk_per_image: bytes it leaves on disk, an image.
        scratch_per_refined: bytes on disk until it ends, a refined image.
    """

    stage: str
    once: float
    per_seed: float = 0.0
    per_image: PerImage = PerImage()
    per_refined: PerImage = PerImage()
    session_bytes: int = 0
    growing_bytes: int | None = None
    images: int = 0
    refined: int = 0
    bytes_per_image: float = 0.0
    bytes_per_refined: float = 0.0
    loaded_share: float = 0.0
    loaded_most: int = 0
    loaded_bytes: int = 0
    actor_bytes: int = 0
    actors: int = 1
    disk_per_image: PerImage = PerImage()
    scratch_per_refined: float = 0.0


@dataclass(frozen=True)
class Measurements:
    """What the probe measured of this cluster.

    Attributes:
        session_seconds: start of the program and of Ray.
        baseline_bytes: memory of the session while nothing ran.
        stages: in the order of the pipeline.
        image_shape: (C, H, W) of the measured images.
        gpus: that its actors had.
        rates: what else is worth knowing, by name with its unit.
    """

    session_seconds: float
    baseline_bytes: int
    stages: tuple[StageCost, ...]
    image_shape: tuple[int, int, int]
    gpus: float
    rates: dict[str, float]


@dataclass(frozen=True)
class Target:
    """What to estimate.

    Attributes:
        images: of the pool.
        refine_rows: images the clusters are refined on; None: all.
        resident_bytes: of the embeddings that stay in memory; beyond it they stay on disk.
        flops: of one forward, over those measured.
        resolution: side of the images, or None: as measured.
        gpus: or None: as measured.
        watts: that the machines draw while it runs, or None.
        price: of a kWh, or None.
    """

    images: int
    seeds: int = 1
    refine_rows: int | None = None
    resident_bytes: int = 4 * GIB
    resolution: int | None = None
    flops: float = 1.0
    gpus: float | None = None
    watts: float | None = None
    price: float | None = None


@dataclass(frozen=True)
class StageEstimate:
    """Seconds of a stage, memory of the session and of one actor, and bytes on disk.

    Attributes:
        disk_bytes: that stay.
        scratch_bytes: besides, until the stage ends.
    """

    stage: str
    start_seconds: float
    seconds: float
    session_bytes: int
    actor_bytes: int
    disk_bytes: int
    scratch_bytes: int


@dataclass(frozen=True)
class Estimate:
    """The answer; `notes` says what is extrapolated or left out.

    Attributes:
        disk_bytes, peak_bytes: the most at a time, on disk and in memory.
    """

    images: int
    stages: tuple[StageEstimate, ...]
    seconds: float
    gpu_hours: float | None
    kwh: float | None
    cost: float | None
    disk_bytes: int
    peak_bytes: int
    bottleneck: str
    notes: tuple[str, ...]

    @property
    def hours(self) -> float:
        return self.seconds / 3600

    def to_json(self, measurements: Measurements) -> str:
        """Both as one object."""
        content: dict[str, Any] = {"hours": self.hours, **dataclasses.asdict(self)}
        content["measured"] = dataclasses.asdict(measurements)
        return json.dumps(content, indent=1, allow_nan=False)


def estimate(measured: Measurements, target: Target) -> Estimate:
    """Seconds, memory, bytes, energy and cost of one run in one session."""
    _, height, width = measured.image_shape
    pixels = target.resolution**2 / (height * width) if target.resolution else 1.0
    gpus = target.gpus / measured.gpus if target.gpus and measured.gpus else 1.0
    refined = min(target.images, target.refine_rows or target.images)
    stages = tuple(
        _stage(cost, target, refined, pixels=pixels, gpus=gpus) for cost in measured.stages
    )
    seconds = measured.session_seconds + sum(one.start_seconds + one.seconds for one in stages)
    kwh, cost = energy(seconds, target.watts, target.price)
    used = measured.gpus if target.gpus is None else target.gpus
    return Estimate(
        images=target.images,
        stages=stages,
        seconds=seconds,
        gpu_hours=used * seconds / 3600 if used else None,
        kwh=kwh,
        cost=cost,
        disk_bytes=_most_on_disk(stages),
        peak_bytes=max([measured.baseline_bytes, *(one.session_bytes for one in stages)]),
        bottleneck=max(stages, key=lambda one: one.start_seconds + one.seconds).stage,
        notes=tuple(_notes(measured, target, pixels)),
    )


def energy(
    seconds: float, watts: float | None, price: float | None
) -> tuple[float | None, float | None]:
    """kWh of machines that draw so many watts, and their cost at the price of a kWh; None where not given."""
    kwh = None if watts is None else watts * seconds / 3.6e6
    return kwh, None if kwh is None or price is None else kwh * price


def _stage(
    cost: StageCost, target: Target, refined: int, *, pixels: float, gpus: float
) -> StageEstimate:
    scale = (pixels, target.flops, gpus)
    each = cost.per_image.at(*scale) * target.images + cost.per_refined.at(*scale) * refined
    # Embeddings beyond the limit stay on disk, so they add no more memory than the limit.
    held = min(cost.bytes_per_refined * refined, target.resident_bytes)
    grown = cost.bytes_per_image * (target.images - cost.images) + max(
        0.0, held - cost.bytes_per_refined * cost.refined
    )
    grown += cost.loaded_bytes * pixels * min(target.images * cost.loaded_share, cost.loaded_most)
    growing = cost.session_bytes if cost.growing_bytes is None else cost.growing_bytes
    disk = cost.disk_per_image.at(pixels, 1.0) * target.images * target.seeds
    return StageEstimate(
        cost.stage,
        start_seconds=cost.once,
        seconds=target.seeds * (cost.per_seed + each),
        session_bytes=int(max(cost.session_bytes, growing + max(0.0, grown))),
        actor_bytes=int(cost.actor_bytes + max(0.0, grown) / cost.actors),
        disk_bytes=int(disk),
        scratch_bytes=int(cost.scratch_per_refined * refined * target.seeds),
    )


def _most_on_disk(stages: tuple[StageEstimate, ...]) -> int:
    """What earlier stages left and a stage adds, at its end, before it removes what it does not leave."""
    left = most = 0
    for one in stages:
        left += one.disk_bytes
        most = max(most, left + one.scratch_bytes)
    return most


def _notes(measured: Measurements, target: Target, pixels: float) -> list[str]:
    notes = []
    if pixels != 1 or target.flops != 1:
        notes.append(
            f"extrapolated: {pixels:.3g} times the pixels and {target.flops:.3g} times the FLOPs of "
            "the images that were measured"
        )
    if target.gpus and not measured.gpus:
        notes.append(
            f"--gpus {target.gpus:g}: the probe's actors had no GPU (runtime.gpus_per_actor=0), so "
            "times are those of CPUs; GPU-hours count the GPUs as reserved all the time"
        )
    elif target.gpus and target.gpus != measured.gpus:
        notes.append(
            f"extrapolated: {target.gpus:g} GPUs share what {measured.gpus:g} did, without loss"
        )
    return notes
