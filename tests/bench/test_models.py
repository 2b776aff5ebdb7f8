"""The bench's network keeps the contract of own models."""

from __future__ import annotations

import numpy as np
import torch

from ssat_ray.bench.models import cnn3
from ssat_ray.models.embedding import Embedder


def test_the_small_network_embeds_as_the_product_does() -> None:
    torch.manual_seed(0)
    model = cnn3(1, 10).eval().requires_grad_(False)
    images = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 1), dtype=np.uint8)
    h, logits = Embedder(model, "pooled")(images)
    assert h.shape == (50, 64) and logits.shape == (50, 10)
    x = torch.from_numpy(images.astype(np.float32) / 255).permute(0, 3, 1, 2)
    np.testing.assert_allclose(logits, model(x).numpy(), atol=1e-5)
