"""Times and memory of a probe's stages (probe.py) taken apart into starts and slopes (estimate.py)."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ssat_ray import runtime
from ssat_ray.config import Config
from ssat_ray.data.pool import Pool
from ssat_ray.data.windows import rows_a_window
from ssat_ray.estimate import Measurements, PerImage, StageCost
from ssat_ray.plan import STAGES
from ssat_ray.selection import em, lloyd
from ssat_ray.selection.clusters import Clusters, describe, load_clusters
from ssat_ray.selection.gmm import GaussianMixture
from ssat_ray.selection.points import Frame
from ssat_ray.selection.scores import random_score
from ssat_ray.stages.cluster_actors import KMEANS_BITS
from ssat_ray.store import Job, Store
from ssat_ray.training.schedule import rule_of

MOST_STEPS = 200
"""Steps of `intermediate` and `pretrain` that a probe takes at most."""
_POINTS = 100_000
_READ_SHARDS = 4
_NUM_POOLS = 3


@dataclass(frozen=True)
class Sizes:
    """Images of the three measured pools: one to warm the actors up, and two to take a slope from."""

    warm: int
    small: int
    main: int
    shard_rows: int
    refined: int
    sample: int


@dataclass
class Probe:
    """The jobs of one measurement, done, and what was seen from outside."""

    config: Config
    size: Sizes
    store: Store
    main: list[Job]
    small: list[Job]
    warm: list[Job]
    extras: list[Job]
    walls: dict[str, float]
    peaks: dict[str, int]
    session_seconds: float
    baseline: int
    one_actor: float

    def records(self, jobs: list[Job], stage: str) -> list[dict[str, Any]]:
        found = [self.store.record(job) for job in jobs if job.stage == stage]
        return [record for record in found if record is not None]

    @property
    def images(self) -> int:
        """Of the three pools together."""
        return self.size.warm + self.size.small + self.size.main

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        channels, height, width = self.records(self.main, "labelled")[0]["image_shape"]
        return channels, height, width

    def seconds(self, jobs: list[Job], stage: str) -> float:
        return float(sum(record["seconds"] for record in self.records(jobs, stage)))


def take_apart(config: Config, probe: Probe) -> Measurements:
    read = _read_seconds(config, probe)
    builders = (_driver, _training, _pool_source, _cluster, _score, _select, _train)
    stages = [cost for build in builders for cost in build(config, probe, read)]
    order = list(STAGES)
    scored = probe.records(probe.main, "score")
    rates = {"images/s read, one thread": 1 / read}
    pool = Pool(probe.store.folder(next(j for j in probe.main if j.stage == "synth")))
    rates["bytes/s read, one thread"] = pool.num_bytes / len(pool) / read
    if scored:
        name = f"images/s scored, {config.runtime.actors} actors"
        rates[name] = scored[0]["rows"] / scored[0]["seconds"]
        rates["images/s scored, one actor"] = probe.one_actor
    return Measurements(
        probe.session_seconds,
        probe.baseline,
        tuple(sorted(stages, key=lambda cost: order.index(cost.stage))),
        probe.image_shape,
        config.runtime.gpus_per_actor * config.runtime.actors,
        rates,
    )


Costs = Iterator[StageCost]


def _read_seconds(config: Config, probe: Probe) -> float:
    """Seconds that one thread takes to read an image and to draw its order: of the real pool, if there is one."""
    made = next(job for job in probe.main if job.stage == "synth")
    external = config.pool.source == "external"
    pool = Pool(str(config.pool.path)) if external else Pool(probe.store.folder(made))
    rows, start = 0, time.perf_counter()
    for index in range(min(_READ_SHARDS, len(pool.shards))):
        shard = pool.read(index)
        random_score(shard.ids, 0)
        rows += len(shard.ids)
    return (time.perf_counter() - start) / rows


def _driver(config: Config, probe: Probe, read: float) -> Costs:
    yield StageCost("labelled", probe.walls["labelled"], session_bytes=probe.baseline)


def _training(config: Config, probe: Probe, read: float) -> Costs:
    """The worker group's start, and the steps, of which the probe took at most `MOST_STEPS`.

    `intermediate` and `pretrain` share a group, whose start counts for the first. The probe trains an
    intermediate model also where the target takes it from a file; then it costs nothing.
    """
    start = probe.walls["intermediate"]
    start -= probe.seconds(probe.main, "intermediate") + probe.seconds(probe.extras, "pretrain")
    steps = {"intermediate": config.intermediate.num_steps, "pretrain": config.pretrain.num_steps}
    trained = {"intermediate": probe.main, "pretrain": probe.extras}
    if config.intermediate.checkpoint is not None:
        del trained["intermediate"]
    for stage, jobs in trained.items():
        for record in probe.records(jobs, stage):
            measured = min(steps[stage], MOST_STEPS)
            yield StageCost(
                stage,
                once=max(0.0, start) if stage == next(iter(trained)) else 0.0,
                per_seed=record["seconds"] * steps[stage] / measured,
                session_bytes=probe.peaks.get(stage, probe.baseline),
                actor_bytes=record["peak_pss_bytes"] // record["world_size"],
            )


def _streamed(
    config: Config, probe: Probe, stage: str, records: list[dict[str, Any]], rows: int
) -> tuple[float, StageCost]:
    """Seconds an image in steady state, and the stage's cost without them.

    Args:
        records: of its steady jobs.
        rows: that all jobs of the stage had together; what they took beyond that is the start.
    """
    images = records[0]["rows"]
    each = sum(record["seconds"] for record in records) / images
    peak = max(record["peak_pss_bytes"] for record in records)
    written = sum(record["bytes_written"] for record in records) / images
    return each, StageCost(
        stage,
        once=max(0.0, probe.walls[stage] - each * rows),
        session_bytes=probe.peaks.get(stage, probe.baseline),
        images=images,
        actor_bytes=peak // config.runtime.actors,
        disk_per_image=PerImage(pixels=written),
    )


def _pool_source(config: Config, probe: Probe, read: float) -> Costs:
    if config.pool.source == "synth":
        records = probe.records(probe.main, "synth")
        each, cost = _streamed(config, probe, "synth", records, probe.images)
        yield replace(cost, per_image=PerImage(pixels=each))
    if config.pool.source == "generate":
        records = probe.records(probe.extras, "generate")
        each, cost = _streamed(config, probe, "generate", records, records[0]["rows"])
        yield replace(cost, per_image=PerImage(pixels=each))


def _cluster(config: Config, probe: Probe, read: float) -> Costs:
    """Reading all images, embedding and refining some; the rest of its time is the start on the sample.

    The embeddings are in memory when the embedding actors have gone, so they add nothing to those' peak.
    """
    jobs = [job for job in probe.main if job.stage == "cluster"]
    if not jobs:
        return
    actors, refine, points, files = config.runtime.actors, 0.0, 0.0, 0.0
    for job in jobs:
        clusters = load_clusters(probe.store.folder(job))
        refine += _iteration_seconds(clusters) * (config.cluster.refine_iterations + 1)
        points = max(points, _point_bytes(clusters))
        files += _held_bytes(config, clusters)
    refined = describe(probe.store.folder(jobs[0]))["rows"]
    per_image = PerImage(pixels=read * len(jobs) / actors)
    embed = _embed_seconds(probe, read)
    per_refined = PerImage(flops=embed * len(jobs) / actors, other=refine / actors)
    modelled = per_image.at(1, 1) * probe.size.main + per_refined.at(1, 1) * refined
    peak = max(record["peak_pss_bytes"] for record in probe.records(probe.main, "cluster"))
    yield StageCost(
        "cluster",
        once=0.0,
        per_seed=max(0.0, probe.walls["cluster"] - modelled),
        per_image=per_image,
        per_refined=per_refined,
        session_bytes=max(probe.peaks.get("cluster", 0), probe.baseline + peak),
        growing_bytes=probe.baseline + peak,
        images=probe.size.main,
        refined=refined,
        bytes_per_refined=points,  # sums and the sample do not grow: they are in the peak
        actor_bytes=peak // actors,
        actors=actors,
        scratch_per_refined=files,
    )


def _point_bytes(clusters: Clusters) -> float:
    """Memory of a point and, for k-means, the number of its cluster; jobs are refined one at a time."""
    if isinstance(clusters, GaussianMixture):
        return 4.0 * clusters.means.shape[1]
    return 4.0 * (clusters.shape[1] + 1)


def _held_bytes(config: Config, clusters: Clusters) -> float:
    """Disk of an embedding with its id and order (stages/held.py), which all jobs keep until they end."""
    if not isinstance(clusters, GaussianMixture):
        width = clusters.shape[1]
    elif clusters.pca_components is None:
        width = clusters.means.shape[1]
    else:
        width = clusters.pca_components.shape[1]
    return float(np.dtype(config.cluster.storage).itemsize * width + 16)


def _embed_seconds(probe: Probe, read: float) -> float:
    """Seconds an actor takes to embed an image: what scoring takes besides reading, so an upper bound."""
    scored = probe.records(probe.main, "score")
    if not scored:
        return 0.0
    actors = probe.config.runtime.actors
    return max(0.0, min(record["seconds"] / record["rows"] for record in scored) * actors - read)


def _iteration_seconds(clusters: Clusters) -> float:
    """Seconds of one thread for a row in one iteration over random points."""
    runtime.use_threads(1)
    rng = np.random.default_rng(0)
    if isinstance(clusters, GaussianMixture):
        width = clusters.means.shape[1]
        sample = rng.standard_normal((_POINTS, width)).astype(np.float32)
        frame = em.mixture_frame(sample, replace(clusters, pca_mean=None, pca_components=None))
        points = frame.points(sample)
        start = time.perf_counter()
        em.em_statistics(points, em.into_frame(clusters, frame), frame.grid)
    else:
        width = clusters.shape[1]
        sample = rng.standard_normal((_POINTS, width)).astype(np.float32)
        frame = Frame.fit(sample, bits=KMEANS_BITS)
        points = frame.points(sample)
        start = time.perf_counter()
        lloyd.lloyd_statistics(points, sample[: len(clusters)], frame.grid)
    return (time.perf_counter() - start) / _POINTS


def _score(config: Config, probe: Probe, read: float) -> Costs:
    records = probe.records(probe.main, "score")
    if not records:
        return
    each, cost = _streamed(config, probe, "score", records, probe.images)
    reading = min(each, len(records) * read / config.runtime.actors)
    yield replace(
        cost,
        per_image=PerImage(pixels=reading, flops=each - reading),
        disk_per_image=PerImage(other=cost.disk_per_image.pixels),
    )


def _select(config: Config, probe: Probe, read: float) -> Costs:
    """Slope between the small and the main pool; both paid the start of a task."""
    records = probe.records(probe.main, "select")
    images = probe.size.main
    each = (probe.seconds(probe.main, "select") - probe.seconds(probe.small, "select")) / (
        images - probe.size.small
    )
    if each <= 0:
        each = probe.seconds(probe.main, "select") / images
    fixed = max(0.0, probe.walls["select"] - each * probe.images) / _NUM_POOLS
    peak = max(record["peak_pss_bytes"] for record in records)
    yield StageCost(
        "select",
        once=0.0,
        per_seed=fixed,
        per_image=PerImage(pixels=each),
        session_bytes=probe.peaks.get("select", probe.baseline),
        growing_bytes=probe.baseline + peak,  # the stages before leave idle processes for a while
        images=images,
        bytes_per_image=_choice_bytes(config),
        actor_bytes=peak,
        disk_per_image=PerImage(pixels=sum(r["bytes_written"] for r in records) / images),
    )


def _choice_bytes(config: Config) -> float:
    """Memory of the choice an image of the pool, as `selection/choose.py` states it, and of its table."""
    ratio = config.select.ratio
    choosing = 4 + 40 * ratio
    return max(choosing, 13.0 if config.select.dedup else 0.0) + 2 * 9 * ratio


def _train(config: Config, probe: Probe, read: float) -> Costs:
    """Every row to the end of its schedule, the plateau's at the latest; evaluation is left out.

    Each worker holds the row's images, or of a pool that is streamed at most three windows; the probe's row
    has none.
    """
    for record in probe.records(probe.extras, "train"):
        steps = rule_of(config.train, record["images"]["labelled"]).expected_steps
        trainings = len(config.rows) + len(config.train.none_recipes) * ("none" in config.rows)
        yield StageCost(
            "train",
            once=max(0.0, probe.walls["train"] - record["seconds"]),
            per_seed=record["seconds"] / record["steps"] * steps * trainings,
            session_bytes=probe.peaks.get("train", probe.baseline),
            loaded_share=1.0 if "full" in config.rows else config.select.ratio,
            loaded_most=3 * rows_a_window(config.train.window_mib, probe.image_shape),
            loaded_bytes=math.prod(probe.image_shape) * record["world_size"],
            actor_bytes=record["peak_pss_bytes"] // record["world_size"],
            actors=record["world_size"],
        )
