"""generate: sample the pool from the DDPM (Ray Data actors, one Parquet shard a part)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssat_ray.config import GenerateConfig
from ssat_ray.data.pool import MANIFEST, manifest
from ssat_ray.data.shard import Shard, write_shard
from ssat_ray.diffusion.sampling import balanced_labels, initial_noise, sample
from ssat_ray.errors import RunFailed
from ssat_ray.stages.base import Stage, StageContext, Task
from ssat_ray.stages.parts import Note, PartActor, record_of, run_parts
from ssat_ray.store import Job, write_atomic


def load_ddpm(folder: Path) -> tuple[Any, Any]:
    """The U-Net (eval mode, channels-last) and scheduler of a diffusers pipeline folder."""
    from diffusers import DDPMScheduler, UNet2DModel

    unet = UNet2DModel.from_pretrained(folder / "unet").eval().requires_grad_(False)
    return unet.to(memory_format=torch.channels_last), DDPMScheduler.from_pretrained(
        folder / "scheduler"
    )


class SampleActor(PartActor):
    """Samples one shard at a time; noise depends on the seed and the image's id only."""

    unit = "images"

    def process(self, task: Task, part: int) -> Note:
        config = GenerateConfig(**task.job.config["generate"])
        about = record_of(task, "labelled")
        channels, height, width = about["image_shape"]
        unet, scheduler = self.cached(task.inputs["ddpm"], lambda: load_ddpm(task.inputs["ddpm"]))
        stop = min((part + 1) * config.shard_rows, config.num_images)
        ids = np.arange(part * config.shard_rows, stop)
        labels = balanced_labels(ids, about["num_classes"])
        noise = initial_noise(ids, (channels, height, width), task.seed)
        images = sample(unet, scheduler, noise, torch.from_numpy(labels), config)
        nhwc = images.permute(0, 2, 3, 1).contiguous().numpy()
        entry = write_shard(task.folder, part, Shard(ids, nhwc, labels))
        return {"rows": len(ids), "of_rows": config.num_images, "shard": entry}


def finish(task: Task, notes: list[Note], context: StageContext) -> dict[str, Any]:
    about = record_of(task, "labelled")
    shards = [note["shard"] for note in notes]
    found, expected = sum(s["rows"] for s in shards), notes[0]["of_rows"]
    if found != expected:
        raise RunFailed(
            f"{task.job.label}: the shards in {task.folder} have {found} of {expected} images; remove "
            "this folder and run again."
        )
    text = manifest([shards], tuple(about["image_shape"]), about["num_classes"])
    write_atomic(task.folder / MANIFEST, text)
    return {"bytes_written": sum(s["bytes"] for s in shards)}


def run(jobs: list[Job], context: StageContext) -> None:
    configs = [GenerateConfig(**job.config["generate"]) for job in jobs]
    run_parts(
        SampleActor, jobs, [-(-c.num_images // c.shard_rows) for c in configs], finish, context
    )


STAGE = Stage("generate", 3, run)
