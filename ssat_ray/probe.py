"""`ssat plan`: run the pipeline itself on small pools of images like the target's (docs/plan.md)."""

from __future__ import annotations

import math
import os
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil

from ssat_ray import pipeline, runtime
from ssat_ray.config import GUIDED, Config
from ssat_ray.costs import MOST_STEPS, Probe, Sizes, take_apart
from ssat_ray.data.shard import rows_a_shard
from ssat_ray.estimate import Measurements
from ssat_ray.memory import MemoryWatch, read_memory, session_memory, shared_bytes
from ssat_ray.models.base import num_flops
from ssat_ray.models.embedding import Embedder
from ssat_ray.models.registry import build_classifier
from ssat_ray.places import place, remove_tree
from ssat_ray.plan import STAGES, build_plan
from ssat_ray.run_folder import MEMORY
from ssat_ray.stages.base import StageContext
from ssat_ray.store import Job, Store

MOST_IMAGES = 1_000_000
_LEAST_IMAGES = 2000
TRAIN_STEPS = 20
_PARTS_PER_ACTOR = 2
_WARM_ROWS = 8192
ONE_ACTOR = "one actor"
"""Marks the samples of the memory series that belong to no stage of the target."""


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
    idle = ("none", "full", *GUIDED)
    rows = [row for row in config.rows if row not in idle] or ["random"]
    tree = config.model_dump()
    # At least as many parts as actors, so that the warm-up reaches each.
    shard_rows = min(size.shard_rows, -(-num_images // config.runtime.actors))
    tree |= {"goal": "selection", "rows": rows, "seeds": config.seeds[:1]}
    tree["pool"] |= {"source": "synth", "path": None, "cluster_generations": 1}
    tree["synth"] |= {"num_images": num_images, "shard_rows": shard_rows}
    tree["cluster"] |= {"sample_rows": size.sample, "refine_rows": size.refined}
    steps = min(config.intermediate.num_steps, MOST_STEPS)
    tree["intermediate"] |= {"num_steps": steps, "checkpoint": None}
    tree["evaluate"] |= {"autoattack_seeds": ()}
    return Config.model_validate(tree)


def load_warning(load: float, cores: int, ours: int) -> str | None:
    """What to say of a machine that computes for others too, or None.

    Args:
        load: average number of processes that run or wait for a core.
        ours: how many of them may be our own.
    """
    if load <= max(cores, ours):
        return None
    return (
        f"warning: the 1-minute load is {load:.1f} on {cores} cores: other programs run beside, so the "
        "measured times are too long"
    )


class Walls(pipeline.Watcher):
    """Wall seconds of each stage, as the pipeline sees them; tells `say` of each stage, and once of load.

    Args:
        actors: of a stage.
    """

    def __init__(self, say: Callable[[str], None], actors: int) -> None:
        self.say, self.actors = say, actors
        self.seconds: dict[str, float] = {}
        self._warned = False

    def look_at_load(self, ours: int) -> None:
        found = load_warning(os.getloadavg()[0], os.cpu_count() or 1, ours)
        if found is not None and not self._warned:
            self._warned = True
            self.say(found)

    def connecting(self) -> None:
        self.look_at_load(ours=0)
        self.say("starting Ray")

    def stage_started(self, stage: str, jobs: list[Job]) -> None:
        self.say(f"measuring {stage}")

    def stage_finished(self, stage: str, jobs: list[Job], seconds: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
        self.look_at_load(ours=self.actors + 2)  # beside the actors, this process and Ray's


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
    folder = place(config.runtime.runs) / f".plan-{uuid.uuid4().hex}"  # where every node sees it
    try:
        probe = _run(config, num_images, seconds, Store(folder / "store"), say)
        probe.session_seconds += before
        say("taking it apart")
        return take_apart(config, probe)
    finally:
        remove_tree(folder)


def _run(
    config: Config, num_images: int, seconds: float, store: Store, say: Callable[[str], None]
) -> Probe:
    walls = Walls(say, config.runtime.actors)
    context = StageContext(store, config.runtime)
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
    with tempfile.TemporaryDirectory() as scratch:
        series = Path(scratch) / MEMORY
        with MemoryWatch(series, interval=1.0) as memory:
            shared = shared_bytes()
            with pipeline.session(config, walls):
                session_seconds = time.perf_counter() - before
                baseline = session_memory(psutil.Process(), shared)
                pipeline.execute(list(wanted.values()), context, walls, memory)
                memory.stage = ONE_ACTOR
                one_actor = _one_actor(warm, small, context)
        samples = [s for session in read_memory(series) for s in session["samples"]]
    peaks: dict[str, int] = {}
    for sample in samples:
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
        kept = ("labelled", "pretrain", "ddpm", "generate")
        jobs += [job for job in plan.unique if job.stage in kept]
    if config.goal == "comparison":
        tree |= {"goal": "comparison", "rows": ("none", "random")}
        tree["train"] |= {"schedule": "plateau", "num_steps": None, "num_epochs": None}
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
