"""generate: a balanced pool that depends on seeds and ids only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel

from ssat_ray.config import RuntimeConfig
from ssat_ray.data.pool import Pool
from ssat_ray.diffusion.files import load_ddpm
from ssat_ray.diffusion.sampling import initial_noise, sample
from ssat_ray.errors import RunFailed
from ssat_ray.loading import load_config
from ssat_ray.models.files import load_classifier
from ssat_ray.plan import STAGES, build_plan
from ssat_ray.stages.base import Session, StageContext, Task
from ssat_ray.stages.generate import SampleActor, finish
from ssat_ray.store import Job, Store


def test_shards_must_have_all_images(tmp_path: Path) -> None:
    (tmp_path / "stage.json").write_text(json.dumps({"image_shape": [1, 8, 8], "num_classes": 10}))
    task = Task(Job("generate", 1, {}, {}), tmp_path / "new", {"labelled": tmp_path}, tmp_path)
    notes = [{"of_rows": 20, "shard": {"rows": rows}} for rows in (10, 9)]
    context = StageContext(Store(tmp_path), RuntimeConfig(), tmp_path / "log")
    with pytest.raises(RunFailed, match=f"generate: the shards in {task.folder} have 19 of 20 im"):
        finish(task, notes, context)


@pytest.mark.ray
def test_pool_is_balanced_and_depends_on_ids_only(tiny_run: Any, folder: Any) -> None:
    pool = Pool(folder(tiny_run, "full", "pool"))
    shard = pool.load()
    assert shard.ids.tolist() == list(range(400))
    assert np.bincount(shard.labels).tolist() == [40] * 10
    unet, scheduler = load_ddpm(folder(tiny_run, "full", "pretrain"))
    ids = np.arange(200, 300)
    torch.set_num_threads(1)
    images = sample(
        unet,
        scheduler,
        initial_noise(ids, (1, 8, 8), 0),
        torch.from_numpy(ids % 10),
        tiny_run.config.generate,
    )
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), pool.read(2).images)


class Alone(SampleActor):
    """The actor in this process, without a board to tell its progress."""

    def __init__(self) -> None:
        self.cache = {}


@pytest.mark.parametrize("classes", [10, None])
def test_labels_by_the_intermediate_model(tmp_path: Path, classes: int | None) -> None:
    """And how many of them are the classes asked for; an unconditional DDPM was asked for none."""
    options = {
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (8,),
        "norm_num_groups": 2,
    }
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        num_class_embeds=classes,
        **options,
    )
    unet.save_pretrained(tmp_path / "ddpm" / "unet")
    DDPMScheduler(1000).save_pretrained(tmp_path / "ddpm" / "scheduler")
    (tmp_path / "ddpm" / "model_index.json").write_text('{"_class_name": "DDPMPipeline"}')
    settings = [
        f"pretrain.checkpoint={tmp_path / 'ddpm'}",
        "rows=[random]",
        "intermediate.num_steps=5",
        "generate={labels: intermediate, num_images: 50, shard_rows: 30, num_inference_steps: 3}",
    ]
    plan, store = build_plan(load_config("digits", settings)), Store(tmp_path / "store")
    jobs = {stage: job for (_, _, stage), job in plan.jobs.items()}
    context = StageContext(store, RuntimeConfig(), tmp_path / "log")
    for stage in ("labelled", "pretrain"):
        STAGES[jobs[stage].stage].run([jobs[stage]], context)
    model = Task.of(jobs["intermediate"], store)
    files, record = STAGES["intermediate"].train(model, Session.alone(model.folder))
    model.write(files)
    model.publish(record)
    task = Task.of(jobs["pool"], store)
    notes = [Alone().process(task, part) for part in (0, 1)]
    record = finish(task, notes, context)
    shard = Pool(task.folder).load()
    x = torch.from_numpy(shard.images / 255).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        predicted = load_classifier(model.folder)(x).argmax(1).numpy()
    assert shard.labels.tolist() == predicted.tolist()
    agreed = float((predicted == shard.ids % 10).mean())
    assert record.get("label_agreement") == (None if classes is None else pytest.approx(agreed))
    assert "intermediate" in {stage for _, _, stage in plan.jobs}, "whose training is charged for"
