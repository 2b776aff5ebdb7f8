"""labelled: read, check and split the labelled set (on the driver: it is the first check of the input)."""

from __future__ import annotations

import hashlib
import time

from ssat_ray.config import DataConfig
from ssat_ray.data.labelled import read_labelled
from ssat_ray.stages.base import Stage, StageContext, Task
from ssat_ray.store import Job


def run(jobs: list[Job], context: StageContext) -> None:
    for job in jobs:
        start = time.perf_counter()
        task = Task.of(job, context.store)
        labelled = read_labelled(DataConfig(**job.config["data"]))
        files = labelled.save(task.folder)
        task.publish(
            {
                "seconds": time.perf_counter() - start,
                "bytes_written": task.write(files),
                "num_classes": labelled.num_classes,
                "image_shape": list(labelled.image_shape),
                "rows": {name: len(labels) for name, (_, labels) in labelled.splits.items()},
                "sha256": hashlib.sha256(files["labelled.safetensors"]).hexdigest(),
            }
        )


STAGE = Stage("labelled", 1, run)
