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
    assert block_rows(100) == 3072
    assert block_rows(4096) == 1536
    assert block_rows(10_000 * 4) == 192


@pytest.mark.parametrize("width", [8, 33, 255])
@pytest.mark.parametrize("num_components", [2, 7, 8])
def test_the_place_in_a_block_changes_no_bit_of_a_projection(
    width: int, num_components: int, one_thread: None
) -> None:
    """In float64, before the grid hides all but one difference in millions."""
    rng = np.random.default_rng(5)
    h = rng.normal(size=(2 * block_rows(16 * width), width)).astype(np.float32)
    axes = np.linalg.qr(rng.normal(size=(width, num_components)))[0].T
    frame = Frame.fit(h[:1000], bits=21, components=axes)
    expected = np.concatenate([x.clone() for _, x in frame._coordinates(h)])
    for shift in (1, 5, 24, len(h) // 4 + 3):
        rolled = np.roll(h, shift, axis=0)
        found = np.concatenate([x.clone() for _, x in frame._coordinates(rolled)])
        np.testing.assert_array_equal(np.roll(found, -shift, axis=0), expected)


@pytest.mark.parametrize("num_components", [None, 2])
def test_the_largest_coordinate_does_not_depend_on_the_split(num_components: int | None) -> None:
    h = np.random.default_rng(4).normal(size=(9_000, 5)).astype(np.float32) * [1, 2, 3, 4, 50]
    axes = None if num_components is None else np.linalg.qr(np.ones((5, 5)) + np.eye(5))[0][:2]
    frame = Frame.fit(h[:100], bits=21, scaled=True, components=axes)
    x = h.astype(np.float64) - frame.mean
    x = (x if axes is None else x @ axes.T) / 2.0**frame.exponents
    assert frame.largest(h) == pytest.approx(np.abs(x).max(), rel=1e-12)
    pieces = np.split(h, [1, 4097, 8000, 8000])
    assert max(frame.largest(piece) for piece in pieces) == frame.largest(h)
    assert frame.largest(h[:0]) == 0.0
    covering = frame.covering(frame.largest(h))
    assert covering.grid.bits == 21
    assert 2.0**20 < np.abs(covering.points(h).numpy()).max() / covering.grid.unit <= 2.0**21
