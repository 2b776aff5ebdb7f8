"""ddpm: take the DDPM from a diffusers pipeline folder or the hub instead of training it (on the driver)."""

from __future__ import annotations

import time
from pathlib import Path

from ssat_ray.diffusion.files import check_ddpm, find_pipeline, load_pipeline, pipeline_files
from ssat_ray.models.unet import is_conditional
from ssat_ray.stages.base import Stage, StageContext, Task
from ssat_ray.stages.parts import record_of
from ssat_ray.store import Job


def run(jobs: list[Job], context: StageContext) -> None:
    for job in jobs:
        start = time.perf_counter()
        task, location = Task.of(job, context.store), str(job.location)
        about = record_of(task, "labelled")
        folder = find_pipeline(location)
        unet, scheduler = load_pipeline(folder)
        check_ddpm(unet, scheduler, tuple(about["image_shape"]), about["num_classes"], location)
        files = pipeline_files(unet, scheduler)
        task.write(files)
        task.publish(
            {
                "seconds": time.perf_counter() - start,
                "bytes_read": sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file()),
                "bytes_written": sum(map(len, files.values())),
                "conditional": is_conditional(unet),
                "num_timesteps": scheduler.config["num_train_timesteps"],
            }
        )


STAGE = Stage("ddpm", 2, run)
