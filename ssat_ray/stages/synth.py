"""synth: a pool of distorted labelled images of any size (Ray Data actors, one Parquet shard a part)."""

from __future__ import annotations

import numpy as np

from ssat_ray.config import SynthConfig
from ssat_ray.data.labelled import LabelledSet
from ssat_ray.data.shard import Shard, rows_a_shard, write_shard
from ssat_ray.data.synth import SynthSource, synth
from ssat_ray.data.synth_pool import settings_of, source_of
from ssat_ray.places import Place
from ssat_ray.stages.base import Stage, StageContext, Task
from ssat_ray.stages.generate import finish
from ssat_ray.stages.parts import Note, PartActor, record_of, run_parts
from ssat_ray.store import Job


def _shard_rows(config: SynthConfig, image_shape: list[int]) -> int:
    return config.shard_rows or rows_a_shard(image_shape)


class SynthActor(PartActor):
    """Makes one shard at a time; an image depends on the seed and its id only."""

    unit = "images"

    def process(self, task: Task, part: int) -> Note:
        config = SynthConfig(**task.job.config["synth"])
        rows = _shard_rows(config, record_of(task, "labelled")["image_shape"])
        folder = task.inputs["labelled"]
        source: SynthSource = self.cached(folder, lambda: _source(folder))
        ids = np.arange(part * rows, min((part + 1) * rows, config.num_images))
        images, labels = synth(source, ids, task.seed, settings=settings_of(config))
        entry = write_shard(task.folder, part, Shard(ids, images, labels))
        return {"rows": len(ids), "of_rows": config.num_images, "shard": entry}


def _source(folder: Place) -> SynthSource:
    return source_of(LabelledSet.load(folder))


def run(jobs: list[Job], context: StageContext) -> None:
    parts = []
    for job in jobs:
        config = SynthConfig(**job.config["synth"])
        record = record_of(Task.of(job, context.store), "labelled")
        parts.append(-(-config.num_images // _shard_rows(config, record["image_shape"])))
    run_parts(SynthActor, jobs, parts, finish, context)


STAGE = Stage("synth", 1, run)
