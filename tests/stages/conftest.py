"""What the stage tests share: folders of the real run and its embeddings, computed independently."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssat_ray.data.pool import Pool
from ssat_ray.models.files import load_classifier


def _folder(run: Any, row: str, stage: str) -> Path:
    return run.store.folder(run.plan.jobs[row, 0, stage])


@pytest.fixture(scope="session")
def folder() -> Callable[[Any, str, str], Path]:
    """(run, row, stage) -> the artefact's folder, seed 0."""
    return _folder


@pytest.fixture(scope="session")
def embeddings(tiny_run: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ids, pooled embeddings and logits of the pool, computed here in one batch."""
    shard = Pool(_folder(tiny_run, "full", "pool")).load()
    model = load_classifier(_folder(tiny_run, "lcs-km", "intermediate"))
    x = torch.from_numpy(shard.images.astype(np.float32) / 255).permute(0, 3, 1, 2)
    with torch.no_grad():
        h, logits = model.embed_with_logits(x, "pooled")
    return shard.ids, h.numpy(), logits.numpy()
