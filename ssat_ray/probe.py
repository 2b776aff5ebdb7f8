"""`ssat plan`: run the pipeline itself on a small pool of the same images, and take its times apart."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from ssat_ray import pipeline, runtime
from ssat_ray.config import Config
from ssat_ray.data.pool import Pool, rows_a_shard
from ssat_ray.estimate import Measurements, PerImage, StageCost
from ssat_ray.memory import MemoryWatch, read_memory, session_memory, shared_bytes
from ssat_ray.models.classifiers import num_flops
from ssat_ray.models.embedding import Embedder
from ssat_ray.models.registry import build_classifier
from ssat_ray.plan import STAGES, build_plan
from ssat_ray.selection import em, lloyd
from ssat_ray.selection.clusters import describe, load_clusters
from ssat_ray.selection.gmm import GaussianMixture
from ssat_ray.selection.points import Frame
from ssat_ray.selection.scores import random_score
from ssat_ray.stages.base import StageContext
from ssat_ray.stages.refine import KMEANS_BITS
from ssat_ray.store import Job, Store

MOST_IMAGES = 1_000_000
_LEAST_IMAGES = 2000
MOST_STEPS = 200
TRAIN_STEPS = 20
_PARTS_PER_ACTOR = 2
_WARM_ROWS = 8192
_POINTS = 100_000
_READ_SHARDS = 4
_NUM_POOLS = 3
ONE_ACTOR = "one actor"
"""Marks the samples of the memory series that belong to no stage of the target."""


@dataclass(frozen=True)
class Sizes:
    """Images of the three measured pools: one to warm the actors up, and two to take a slope from."""

    warm: int
    small: int
    main: int
    shard_rows: int
    refined: int
    sample: int


def sizes(config: Config, num_images: int, rate: float, seconds: float, shape: list[int]) -> Sizes:
    """How much to measure, so that it takes about `seconds` at `rate` images/s of one thread.

    The warm-up, small and main pools together have at most `MOST_IMAGES`; the refined share is that
    of the target, but never less than the sample, which is always fitted as it will be.
    """
    actors, k = config.runtime.actors, config.cluster.k or 100
    most = (MOST_IMAGES - _WARM_ROWS * actors) / 1.5
    main = int(min(most, rate * seconds / 2, num_images))
    # The warm-up pool, a quarter of it at most, must still have k images and a selection.
    main = max(main, _LEAST_IMAGES, 4 * k, 8 * actors, math.ceil(8 / config.select.ratio))
    small = main // 2
    whole = config.cluster.refine_rows or num_images
    sample = min(config.cluster.sample_rows, main)
    share = min(1.0, whole / num_images)
    refined = min(main, max(sample, round(share * main)))
    rows = min(rows_a_shard(shape), -(-main // (_PARTS_PER_ACTOR * actors)))
    return Sizes(min(_WARM_ROWS * actors, small // 2), small, main, rows, refined, sample)


def probe_config(config: Config, size: Sizes, num_images: int) -> Config:
    """The configuration on a pool of `num_images` made on the spot, one seed, ending with a selection."""
    rows = [row for row in config.rows if row not in ("none", "full")] or ["random"]
    tree = config.model_dump()
    # At least as many parts as actors, so that the warm-up reaches each.
    shard_rows = min(size.shard_rows, -(-num_images // config.runtime.actors))
    tree |= {"goal": "selection", "rows": rows, "seeds": config.seeds[:1]}
    tree["pool"] |= {"source": "synth", "path": None, "cluster_generations": 1}
    tree["synth"] |= {"num_images": num_images, "shard_rows": shard_rows}
    tree["cluster"] |= {"sample_rows": size.sample, "refine_rows": size.refined}
    steps = min(config.intermediate.num_steps, MOST_STEPS)
    tree["intermediate"] |= {"num_steps": steps}
    tree["evaluate"] |= {"autoattack_seeds": ()}
    return Config.model_validate(tree)


class Walls(pipeline.Watcher):
    """Wall seconds of each stage, as the pipeline sees them; tells `say` of each stage."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.seconds: dict[str, float] = {}

    def connected(self, board: Any) -> None:
        self._board = board  # Ray ends an actor that nobody refers to

    def stage_started(self, stage: str, jobs: list[Job]) -> None:
        self.say(f"measuring {stage}")

    def stage_finished(self, stage: str, jobs: list[Job], seconds: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


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

    def seconds(self, jobs: list[Job], stage: str) -> float:
        return float(sum(record["seconds"] for record in self.records(jobs, stage)))


def program_seconds() -> float:
    """Since this process began: Python's start and the imports."""
    return time.time() - psutil.Process().create_time()


def measure(
    config: Config,
    num_images: int,
    seconds: float,
    *,
    before: float = 0.0,
    say: Callable[[str], None] = lambda text: None,
) -> Measurements:
    """Measure this cluster in a store of its own, which is removed.

    Args:
        num_images: of the target, which sets the share of images that are refined on.
        seconds: that embedding and scoring should take; starts of Ray and actors come on top.
        before: seconds that this program took until now.
        say: is told what is being measured.
    """
    runs = Path(config.runtime.runs).absolute()
    runs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=runs, prefix=".plan-") as name:
        store = Store(Path(name) / "store")
        probe = _run(config, num_images, seconds, store, say)
        probe.session_seconds += before
        say("taking it apart")
        return take_apart(config, probe)


def _run(
    config: Config, num_images: int, seconds: float, store: Store, say: Callable[[str], None]
) -> Probe:
    folder, walls = store.root.parent, Walls(say)
    context = StageContext(store, config.runtime, folder / "run.log")
    labelled = next(job for job in build_plan(config).unique if job.stage == "labelled")
    pipeline.execute([labelled], context, walls)
    record = store.record(labelled)
    assert record is not None
    shape = record["image_shape"]
    rate = _embedding_rate(config, tuple(shape), record["num_classes"])
    size = sizes(config, num_images, rate, seconds, shape)
    pools = [probe_config(config, size, n) for n in (size.main, size.small, size.warm)]
    main, small, warm = (build_plan(one).unique for one in pools)
    small, warm = follow(small, main), follow(warm, main)
    extras = extra_jobs(config, size)
    wanted = {job.digest: job for jobs in (warm, small, main, extras) for job in jobs}
    before = time.perf_counter()
    with MemoryWatch(folder / pipeline.MEMORY, interval=1.0) as memory:
        shared = shared_bytes()
        with runtime.ray_session(config.runtime):
            walls.connected(runtime.start_board())
            session_seconds = time.perf_counter() - before
            baseline = session_memory(psutil.Process(), shared)
            pipeline.execute(list(wanted.values()), context, walls, memory)
            memory.stage = ONE_ACTOR
            one_actor = _one_actor(warm, small, context)
    peaks: dict[str, int] = {}
    for sample in (
        s for session in read_memory(folder / pipeline.MEMORY) for s in session["samples"]
    ):
        for stage in sample[2].split(", "):
            peaks[stage] = max(peaks.get(stage, 0), sample[1])
    return Probe(
        config=pools[0],
        size=size,
        store=store,
        main=main,
        small=small,
        warm=warm,
        extras=extras,
        walls=walls.seconds,
        peaks=peaks,
        session_seconds=session_seconds,
        baseline=baseline,
        one_actor=one_actor,
    )


def _embedding_rate(config: Config, shape: tuple[int, int, int], num_classes: int) -> float:
    """Images a second of the model on one thread, roughly: to choose sizes by."""
    runtime.use_threads(1)
    model = build_classifier(config.model, shape, num_classes, seed=0).eval()
    embedder = Embedder(model, config.embed.layer, config.embed.precision)
    images = np.zeros((2048, *shape[1:], shape[0]), np.uint8)
    embedder(images)
    start = time.perf_counter()
    embedder(images)
    return len(images) / (time.perf_counter() - start)


def follow(jobs: list[Job], main: list[Job]) -> list[Job]:
    """Jobs of another pool, with the clusters of the main one: nothing is fitted twice."""
    fitted = {job.params["method"]: job for job in main if job.stage == "cluster"}
    swapped: dict[str, Job] = {}
    for job in jobs:
        if job.stage == "cluster":
            swapped[job.digest] = fitted[job.params["method"]]
        else:
            inputs = {name: swapped[given.digest] for name, given in job.inputs.items()}
            swapped[job.digest] = replace(job, inputs=inputs)
    return list(swapped.values())


def extra_jobs(config: Config, size: Sizes) -> list[Job]:
    """What a comparison and a generated pool need besides: some generated images, a few training steps."""
    tree = probe_config(config, size, size.small).model_dump()
    jobs: list[Job] = []
    if config.pool.source == "generate":
        rows = config.generate.shard_rows * config.runtime.actors
        sampled = {**tree, "rows": ("random",), "pool": {**tree["pool"], "source": "generate"}}
        sampled["cluster"] = {**tree["cluster"], "k": None}
        sampled["generate"] = {**tree["generate"], "num_images": rows}
        steps = min(config.pretrain.num_steps, MOST_STEPS)
        sampled["pretrain"] = {**tree["pretrain"], "num_steps": steps}
        plan = build_plan(Config.model_validate(sampled))
        jobs += [job for job in plan.unique if job.stage in ("labelled", "pretrain", "generate")]
    if config.goal == "comparison":
        tree |= {"goal": "comparison", "rows": ("none", "random")}
        tree["train"] |= {"max_steps": TRAIN_STEPS, "eval_every": TRAIN_STEPS, "none_recipes": {}}
        plan = build_plan(Config.model_validate(tree))
        jobs += plan.jobs["none", config.seeds[0], "train"].closure()
    return jobs


def _one_actor(warm: list[Job], small: list[Job], context: StageContext) -> float:
    """Images a second that one actor scores, its first part not counted; 0 without a score stage."""
    alone = replace(context, runtime=context.runtime.model_copy(update={"actors": 1}))
    jobs = []
    for group in (warm, small):
        found = [job for job in group if job.stage == "score"][:1]
        jobs += [replace(job, params={**job.params, "actors": 1}) for job in found]
    if not jobs:
        return 0.0
    STAGES["score"].run(jobs, alone)
    record = context.store.record(jobs[-1])
    assert record is not None
    return float(record["rows"] / record["seconds"])


# -- from records to costs ----------------------------------------------------------------------------


def take_apart(config: Config, probe: Probe) -> Measurements:
    read = _read_seconds(config, probe)
    builders = (_driver, _training, _pool_source, _cluster, _score, _select, _train)
    stages = [cost for build in builders for cost in build(config, probe, read)]
    order = list(STAGES)
    shape = probe.records(probe.main, "labelled")[0]["image_shape"]
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
        tuple(shape),
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

    `intermediate` and `pretrain` share a group, whose start counts for the first.
    """
    start = probe.walls["intermediate"]
    start -= probe.seconds(probe.main, "intermediate") + probe.seconds(probe.extras, "pretrain")
    steps = {"intermediate": config.intermediate.num_steps, "pretrain": config.pretrain.num_steps}
    for stage, jobs in (("intermediate", probe.main), ("pretrain", probe.extras)):
        for record in probe.records(jobs, stage):
            measured = min(steps[stage], MOST_STEPS)
            yield StageCost(
                stage,
                once=max(0.0, start) if stage == "intermediate" else 0.0,
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
    """Reading all images, embedding and refining some; the rest of its time is the start on the sample."""
    jobs = [job for job in probe.main if job.stage == "cluster"]
    if not jobs:
        return
    actors, refine, width = config.runtime.actors, 0.0, 0
    for job in jobs:
        each, width = _iteration_seconds(load_clusters(probe.store.folder(job)))
        refine += each * (config.cluster.refine_iterations + 1)
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
        images=probe.size.main,
        refined=refined,
        bytes_per_refined=4.0 * width,
        actor_bytes=peak // actors,
    )


def _embed_seconds(probe: Probe, read: float) -> float:
    """Seconds an actor takes to embed an image: what scoring takes besides reading, so an upper bound."""
    scored = probe.records(probe.main, "score")
    if not scored:
        return 0.0
    actors = probe.config.runtime.actors
    return max(0.0, min(record["seconds"] / record["rows"] for record in scored) * actors - read)


def _iteration_seconds(clusters: Any) -> tuple[float, int]:
    """Seconds of one thread for a row in one iteration over random points, and the width of the points."""
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
    return (time.perf_counter() - start) / _POINTS, width


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
    yield StageCost(
        "select",
        once=0.0,
        per_seed=fixed,
        per_image=PerImage(pixels=each),
        session_bytes=probe.peaks.get("select", probe.baseline),
        images=images,
        bytes_per_image=_choice_bytes(config),
        actor_bytes=max(record["peak_pss_bytes"] for record in records),
        disk_per_image=PerImage(pixels=sum(r["bytes_written"] for r in records) / images),
    )


def _choice_bytes(config: Config) -> float:
    """Memory of the choice an image of the pool, as `selection/choose.py` states it, and of its table."""
    ratio = config.select.ratio
    choosing = 4 + 40 * ratio
    return max(choosing, 13.0 if config.select.dedup else 0.0) + 2 * 9 * ratio


def _train(config: Config, probe: Probe, read: float) -> Costs:
    """Every row to `train.max_steps` and its cool-down, so an upper bound; evaluation is left out."""
    for record in probe.records(probe.extras, "train"):
        steps = config.train.max_steps * (1 + config.train.cooldown_fraction)
        trainings = len(config.rows) + len(config.train.none_recipes) * ("none" in config.rows)
        yield StageCost(
            "train",
            once=max(0.0, probe.walls["train"] - record["seconds"]),
            per_seed=record["seconds"] / record["steps"] * steps * trainings,
            session_bytes=probe.peaks.get("train", probe.baseline),
            actor_bytes=record["peak_pss_bytes"] // record["world_size"],
        )


def flops_ratio(config: Config, image_shape: tuple[int, int, int], resolution: int) -> float:
    """FLOPs of one forward of the configured model at another resolution, over those at `image_shape`.

    Args:
        image_shape: (C, H, W) of the measured images.
        resolution: side of the target's images.
    """
    forward = [
        num_flops(build_classifier(config.model, shape, num_classes=10, seed=0), shape)
        for shape in (image_shape, (image_shape[0], resolution, resolution))
    ]
    return forward[1] / forward[0]
