"""generate: a balanced pool that depends on seeds and ids only."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ssat_ray.data.pool import Pool
from ssat_ray.diffusion.sampling import initial_noise, sample
from ssat_ray.stages.generate import load_ddpm

pytestmark = pytest.mark.ray


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
