"""generate: sample the pool, or a row's own images, from a DDPM (Ray Data actors, one Parquet shard a part)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ssat_ray.config import GenerateConfig
from ssat_ray.data.pool import MANIFEST, manifest
from ssat_ray.data.shard import Shard, write_shard
from ssat_ray.diffusion.files import load_ddpm
from ssat_ray.diffusion.guidance import Guide
from ssat_ray.diffusion.sampling import (
    balanced_labels,
    import_samplers,
    initial_noise,
    sample,
    step_generators,
)
from ssat_ray.errors import RunFailed
from ssat_ray.models.embedding import Embedder
from ssat_ray.models.files import load_classifier
from ssat_ray.models.unet import is_conditional
from ssat_ray.places import write_atomic
from ssat_ray.runtime import exact_on_gpu
from ssat_ray.stages.base import Stage, StageContext, Task
from ssat_ray.stages.finetune import guide_of
from ssat_ray.stages.parts import Note, PartActor, record_of, run_parts
from ssat_ray.store import Job

if TYPE_CHECKING:
    from diffusers import DDPMScheduler, UNet2DModel


class SampleActor(PartActor):
    """Samples one shard at a time; noise depends on the seed and the image's id only.

    A label is the class asked for, -1 from an unconditional model, or what the intermediate model says.
    """

    unit = "images"
    on_gpu = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        exact_on_gpu()
        import_samplers()

    def process(self, task: Task, part: int) -> Note:
        config = GenerateConfig(**task.job.config["generate"])
        about = record_of(task, "labelled")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

        def load() -> tuple[UNet2DModel, DDPMScheduler, Guide | None, Embedder | None]:
            unet, scheduler = load_ddpm(task.inputs["ddpm"])
            guide = guide_of(task).to(device) if "guide" in task.job.params else None
            labeller = None
            if config.labels == "intermediate":
                model = load_classifier(task.inputs["intermediate"]).to(device)
                labeller = Embedder(model, "logits", "float32", str(device))
            return unet.to(device), scheduler, guide, labeller

        unet, scheduler, guide, labeller = self.cached(task.folder, load)
        first = int(task.job.params.get("first_id", 0))
        start = part * config.shard_rows
        ids = first + np.arange(start, min(start + config.shard_rows, config.num_images))
        asked = balanced_labels(ids, about["num_classes"]) if is_conditional(unet) else None
        noise = initial_noise(ids, tuple(about["image_shape"]), task.seed)
        batches = []
        for begin in range(0, len(ids), config.batch_size):
            rows = slice(begin, begin + config.batch_size)
            images = sample(
                unet,
                scheduler,
                noise[rows].to(device),
                None if asked is None else torch.from_numpy(asked[rows]).to(device),
                config,
                guide,
                step_generators(ids[rows], task.seed, config),
            )
            batches.append(images.permute(0, 2, 3, 1).contiguous().numpy())
        nhwc = np.concatenate(batches)
        labels = np.full(len(ids), -1) if asked is None else asked
        note = {"rows": len(ids), "of_rows": config.num_images}
        if labeller is not None:
            labels = labeller(nhwc)[1].argmax(axis=1)
            note |= {} if asked is None else {"as_asked": int((labels == asked).sum())}
        return note | {"shard": write_shard(task.folder, part, Shard(ids, nhwc, labels))}


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
    record = {"bytes_written": sum(s["bytes"] for s in shards)}
    if all("as_asked" in note for note in notes):
        record["label_agreement"] = sum(note["as_asked"] for note in notes) / found
    return record


def run(jobs: list[Job], context: StageContext) -> None:
    configs = [GenerateConfig(**job.config["generate"]) for job in jobs]
    run_parts(
        SampleActor, jobs, [-(-c.num_images // c.shard_rows) for c in configs], finish, context
    )


STAGE = Stage("generate", 5, run)
