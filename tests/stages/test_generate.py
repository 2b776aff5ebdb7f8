"""generate: a balanced pool that depends on seeds and ids only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssat_ray.config import RuntimeConfig
from ssat_ray.data.pool import Pool
from ssat_ray.diffusion.files import load_ddpm
from ssat_ray.diffusion.sampling import initial_noise, sample
from ssat_ray.errors import RunFailed
from ssat_ray.stages.base import StageContext, Task
from ssat_ray.stages.generate import finish
from ssat_ray.store import Job, Store


def test_shards_must_have_all_images(tmp_path: Path) -> None:
    (tmp_path / "stage.json").write_text(json.dumps({"image_shape": [1, 8, 8], "num_classes": 10}))
    task = Task(Job("generate", 1, {}, {}), tmp_path / "new", {"labelled": tmp_path}, tmp_path)
    notes = [{"of_rows": 20, "shard": {"rows": rows}} for rows in (10, 9)]
    context = StageContext(Store(tmp_path), RuntimeConfig())
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
