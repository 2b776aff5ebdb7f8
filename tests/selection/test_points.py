"""Points of a frame: on its grid, and the same bits in any batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssat_ray.selection.points import Frame, block_rows, blocks

H = np.random.default_rng(0).normal(size=(5003, 12)).astype(np.float32) * 3 + 5


def test_points_have_the_same_bits_in_any_batch() -> None:
    components = np.linalg.qr(np.random.default_rng(0).normal(size=(12, 12)))[0][:5]
    frame = Frame.fit(H[:1000], bits=21, scaled=True, components=components)
    whole = frame.points(H)
    assert whole.dtype == torch.float32 and whole.shape == (len(H), 5)
    for start in (0, 1, 2047, 4000):
        np.testing.assert_array_equal(frame.points(H[start : start + 5]), whole[start : start + 5])
    expected = (H.astype(np.float64) - frame.mean) @ components.T
    expected = np.ldexp(expected, -frame.exponents)
    np.testing.assert_allclose(whole.numpy(), expected, atol=frame.grid.unit)


@pytest.mark.parametrize("scaled", [False, True])
def test_points_are_the_nearest_on_the_grid(scaled: bool) -> None:
    frame = Frame.fit(H[:1000], bits=20, scaled=scaled)
    exact = np.ldexp(H.astype(np.float64) - frame.mean, -frame.exponents)
    expected = np.round(exact / frame.grid.unit) * frame.grid.unit
    np.testing.assert_array_equal(frame.points(H).numpy(), expected.astype(np.float32))


def test_points_of_half_precision() -> None:
    frame = Frame.fit(H[:1000], bits=24)
    half = H.astype(np.float16)
    assert torch.equal(frame.points(half), frame.points(half.astype(np.float32)))


def test_blocks_have_one_shape_and_cover_all_rows() -> None:
    x = torch.arange(10.0)[:, None]
    found = list(blocks(x, 4))
    assert [(rows.start, rows.stop) for rows, _ in found] == [(0, 4), (4, 8), (8, 10)]
    assert torch.equal(
        torch.cat([block for _, block in found])[:, 0], torch.tensor([*range(10), 0.0, 0.0])
    )


def test_block_rows_bound_the_memory() -> None:
    assert block_rows(100) == 4096
    assert block_rows(4096) == 2048
    assert block_rows(10_000 * 4) == 256
