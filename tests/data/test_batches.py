"""Batches as functions of (seed, step): complete epochs, balanced slices, shifts by a loop."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssat_ray.data.batches import (
    _STREAMS,
    epoch_indices,
    generator,
    interleave,
    shift_offsets,
    shifted,
)


def _stream(num_items: int, batch: int, count: int, seed: int = 0) -> list[int]:
    steps = -(-count // batch)
    parts = [epoch_indices(num_items, batch, seed, "labelled", s) for s in range(steps)]
    assert all(p.shape == (batch,) and p.dtype == torch.int64 for p in parts)
    return torch.cat(parts).tolist()[:count]


@settings(max_examples=60, deadline=None)
@given(num_items=st.integers(1, 23), batch=st.integers(1, 60), epochs=st.integers(1, 4))
def test_every_item_appears_once_in_each_epoch(num_items: int, batch: int, epochs: int) -> None:
    draws = _stream(num_items, batch, epochs * num_items)
    for start in range(0, len(draws), num_items):
        assert sorted(draws[start : start + num_items]) == list(range(num_items))


@settings(max_examples=30, deadline=None)
@given(num_items=st.integers(1, 40), batch=st.integers(1, 50), seed=st.integers(0, 2**31))
def test_the_order_does_not_depend_on_how_it_is_cut(num_items: int, batch: int, seed: int) -> None:
    whole = _stream(num_items, 1, 2 * num_items, seed)
    assert _stream(num_items, batch, 2 * num_items, seed) == whole


def test_orders_differ_by_epoch_seed_and_stream() -> None:
    def order(seed: int, stream: str, epoch: int) -> tuple[int, ...]:
        return tuple(epoch_indices(50, 50, seed, stream, epoch).tolist())

    keys = [(s, t, e) for s in (0, 1, 2) for t in ("labelled", "unlabelled") for e in range(4)]
    assert len({order(*key) for key in keys}) == len(keys)
    assert order(1, "labelled", 2) == order(1, "labelled", 2)


def test_generators_repeat_and_differ() -> None:
    keys = [(seed, stream, step) for seed in range(4) for stream in _STREAMS for step in range(20)]
    first = [torch.rand(2, generator=generator(*key)).tolist() for key in keys]
    assert first == [torch.rand(2, generator=generator(*key)).tolist() for key in keys]
    assert len({tuple(draw) for draw in first}) == len(keys)


def test_neighbouring_steps_are_uncorrelated() -> None:
    draws = torch.stack([torch.randn(64, generator=generator(0, "noise", s)) for s in range(64)])
    correlation = torch.corrcoef(draws)[~torch.eye(64, dtype=torch.bool)]
    assert correlation.abs().max() < 6 / 8  # six standard errors of 64 draws
    assert abs(float(draws.mean())) < 4 / 64
    assert float((correlation**2).mean()) == pytest.approx(1 / 63, rel=0.2)


@given(labelled=st.integers(0, 70), unlabelled=st.integers(0, 70))
def test_interleave_is_a_permutation_that_keeps_each_kinds_order(labelled, unlabelled) -> None:
    order = interleave(labelled, unlabelled).tolist()
    assert sorted(order) == list(range(labelled + unlabelled))
    assert [i for i in order if i < labelled] == list(range(labelled))
    assert [i for i in order if i >= labelled] == list(range(labelled, labelled + unlabelled))


@given(ranks=st.sampled_from([2, 4, 8]), labelled=st.integers(0, 40), unlabelled=st.integers(0, 40))
def test_every_rank_gets_the_same_number_of_labelled_rows(ranks, labelled, unlabelled) -> None:
    order = interleave(ranks * labelled, ranks * unlabelled)
    slices = order.chunk(ranks) if len(order) else []
    assert [int((part < ranks * labelled).sum()) for part in slices] == [labelled] * len(slices)


@given(labelled=st.integers(1, 60), unlabelled=st.integers(1, 60), ranks=st.sampled_from([2, 3, 4]))
def test_other_numbers_differ_by_at_most_two_rows(labelled, unlabelled, ranks) -> None:
    order = interleave(labelled, unlabelled)
    counts = [int((part < labelled).sum()) for part in torch.tensor_split(order, ranks)]
    assert max(counts) - min(counts) <= 2


def _shift_loop(images: torch.Tensor, offsets: list[list[int]], reach: int) -> torch.Tensor:
    out = torch.zeros_like(images)
    for b, (down, right) in enumerate(offsets):
        for i in range(images.shape[2]):
            for j in range(images.shape[3]):
                y, x = i + down - reach, j + right - reach
                if 0 <= y < images.shape[2] and 0 <= x < images.shape[3]:
                    out[b, :, i, j] = images[b, :, y, x]
    return out


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("reach", [1, 3])
def test_shifted_equals_a_loop(dtype: torch.dtype, reach: int) -> None:
    images = torch.randint(1, 256, (12, 3, 5, 7)).to(dtype)
    offsets = torch.randint(0, 2 * reach + 1, (12, 2), generator=torch.Generator().manual_seed(3))
    found = shifted(images, reach, offsets)
    assert found.dtype == dtype
    assert torch.equal(found, _shift_loop(images, offsets.tolist(), reach))


def test_shifts_are_uniform_over_the_window_and_zero_is_the_identity() -> None:
    images = torch.zeros(4000, 1, 5, 5, dtype=torch.uint8)
    images[:, 0, 2, 2] = 1
    rng = torch.Generator().manual_seed(0)
    assert shifted(images, 0, shift_offsets(4000, 0, rng)) is images
    moved = shifted(images, 1, shift_offsets(4000, 1, rng))
    counts = Counter(map(tuple, moved.nonzero()[:, 2:].tolist()))
    assert set(counts) == {(i, j) for i in (1, 2, 3) for j in (1, 2, 3)}
    expected = 4000 / 9
    chi2 = sum((n - expected) ** 2 / expected for n in counts.values())
    assert chi2 < 26.1  # 99.9 % of chi-square with 8 degrees of freedom
