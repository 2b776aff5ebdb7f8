"""pool: register a pool that exists elsewhere, one artefact a generation (on the driver: it reads one file)."""

from __future__ import annotations

import time

from ssat_ray.data.labelled import LabelledSet
from ssat_ray.data.pool import MANIFEST, Pool, manifest
from ssat_ray.errors import UserError
from ssat_ray.places import Place, write_atomic
from ssat_ray.stages.base import Stage, StageContext, Task
from ssat_ray.store import Job, Store


def run(jobs: list[Job], context: StageContext) -> None:
    for job in jobs:
        start = time.perf_counter()
        task = Task.of(job, context.store)
        pool = refer(task)
        labelled = LabelledSet.load(task.inputs["labelled"])
        if pool.image_shape != labelled.image_shape:
            raise UserError(
                f"pool.path: the images of {job.location} are {pool.image_shape} (C, H, W), the labelled "
                f"ones {labelled.image_shape}; import the pool at the labelled images' size."
            )
        if pool.num_classes > labelled.num_classes:
            raise UserError(
                f"pool.path: {job.location} has labels up to {pool.num_classes - 1}, the labelled set "
                f"{labelled.num_classes} classes."
            )
        seconds = time.perf_counter() - start
        task.publish({"rows": len(pool), "bytes_read": 0, "seconds": seconds})


def refer(task: Task) -> Pool:
    """Write the manifest of the job's generation, which says where the shards are."""
    whole = Pool(str(task.job.location))
    number = task.job.params["generation"]
    shards, num_classes = whole.generations[number], whole.classes_then[number]
    text = manifest([shards], whole.image_shape, num_classes, location=whole.shards_in.uri)
    write_atomic(task.folder / MANIFEST, text)
    return Pool(task.folder)


def follow(jobs: list[Job], store: Store) -> None:
    """Point published references at where their pools are now: the location is not in the digest."""
    for job in jobs:
        if job.stage == STAGE.name and store.record(job) is not None:
            folder: Place = store.folder(job)
            if Pool(folder).shards_in.uri != Pool(str(job.location)).shards_in.uri:
                refer(Task.of(job, store))


STAGE = Stage("pool", 1, run)
