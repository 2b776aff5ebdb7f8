"""Embeddings: the model's own numbers, and the same bits wherever a row stands."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssat_ray.models.base import AlignedLinear
from ssat_ray.models.embedding import BLOCK_ROWS, Embedder
from ssat_ray.models.preact_small import PreActSmall


def net_of(widths: tuple[int, int]) -> PreActSmall:
    torch.manual_seed(0)
    net = PreActSmall(1, 10, widths, (2, 2)).eval().requires_grad_(False)
    return net.to(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def model() -> PreActSmall:
    return net_of((8, 16))


def _images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)


@pytest.mark.parametrize("layer", ["pooled", "logits", "unpooled"])
def test_float32_is_the_models_forward(model: PreActSmall, layer: str) -> None:
    images = _images(BLOCK_ROWS + 100)
    h, logits = Embedder(model, layer)(images)
    x = torch.from_numpy(images.astype(np.float32) / 255).permute(0, 3, 1, 2)
    expected, expected_logits = model.embed_with_logits(x, layer)
    np.testing.assert_allclose(h, expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(logits, expected_logits.numpy(), atol=1e-5)
    assert h.dtype == logits.dtype == np.float32


@pytest.mark.parametrize("widths", [(8, 16), (32, 64), (8, 33)])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_row_has_the_same_bits_anywhere(widths: tuple[int, int], precision: str) -> None:
    embedder = Embedder(net_of(widths), "pooled", precision)
    images = _images(2 * BLOCK_ROWS + 17)
    h, logits = embedder(images)
    rows = np.random.default_rng(1).permutation(len(images))[: BLOCK_ROWS + 333]
    moved_h, moved_logits = embedder(images[rows])
    assert moved_h.tobytes() == h[rows].tobytes()
    assert moved_logits.tobytes() == logits[rows].tobytes()


def test_bf16_is_close_and_not_rounded_to_bf16(model: PreActSmall) -> None:
    images = _images(500)
    exact, _ = Embedder(model, "pooled")(images)
    found, logits = Embedder(model, "pooled", "bf16")(images)
    assert 0 < np.abs(found - exact).max() < 0.05 * np.abs(exact).max()
    rounded = torch.from_numpy(logits).bfloat16().float().numpy()
    assert (rounded != logits).mean() > 0.9


def test_no_rows_keep_the_widths(model: PreActSmall) -> None:
    h, logits = Embedder(model, "pooled")(_images(0))
    assert h.shape == (0, 16) and logits.shape == (0, 10)


@pytest.mark.parametrize("width", [16, 33, 255, 640])
@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_logits_of_any_width_do_not_depend_on_the_place(
    width: int, num_classes: int, one_thread: None
) -> None:
    torch.manual_seed(0)
    layer = AlignedLinear(width, num_classes).requires_grad_(False)
    x = torch.rand(BLOCK_ROWS, width)
    logits = layer(x)
    torch.testing.assert_close(logits, torch.nn.Linear.forward(layer, x))
    for shift in (1, 7, 100, BLOCK_ROWS // 2 + 3):
        assert torch.equal(layer(x.roll(shift, 0)).roll(-shift, 0), logits)
