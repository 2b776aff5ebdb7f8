"""Mirror images and CutMix against loops and closed forms; a rank's rows are those of the whole batch."""

from itertools import pairwise
from math import lgamma

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ssat_ray.config import IntermediateConfig, OptimiserConfig, TrainConfig
from ssat_ray.data.augment import (
    Mix,
    augmented,
    cutmix_draws,
    flip_draws,
    flipped,
    pasted,
)
from ssat_ray.data.batches import generator, shift_offsets, shifted


def _rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _images(rows: int, height: int = 6, width: int = 5) -> Tensor:
    return torch.randint(0, 256, (rows, 3, height, width), generator=_rng(), dtype=torch.uint8)


def _augmented(
    images: Tensor,
    labels: Tensor,
    config: OptimiserConfig,
    part: slice = slice(None),
    seed: int = 0,
    step: int = 0,
) -> tuple[Tensor, Mix | None]:
    return augmented(lambda at: images[at], labels, part, config, seed=seed, step=step)


# -- mirror images ----------------------------------------------------------------------------------------


def test_flipped_mirrors_the_asked_images_and_no_other() -> None:
    images, mirrored = _images(4), torch.tensor([True, False, False, True])
    found = flipped(images, mirrored).numpy()
    for i, image in enumerate(images.numpy()):
        assert (found[i] == (np.flip(image, axis=-1) if mirrored[i] else image)).all()
    assert found.dtype == np.uint8


def test_half_of_the_images_are_mirrored() -> None:
    assert abs(float(flip_draws(10_000, _rng()).float().mean()) - 0.5) < 4 * 0.005


# -- CutMix -----------------------------------------------------------------------------------------------


def _moment(alpha: float, k: float) -> float:
    """E[u^k] of u ~ Beta(alpha, alpha)."""
    logarithm = lgamma(alpha + k) - lgamma(alpha) + lgamma(2 * alpha) - lgamma(2 * alpha + k)
    return float(np.exp(logarithm))


@pytest.mark.parametrize("alpha", [0.3, 1.0, 4.0])
def test_patches_have_the_expected_area(alpha: float) -> None:
    """A side r = sqrt(u), cut off at the edges, has mean length r - r^2 / 4; the area's mean follows."""
    rows, side = 20_000, 2**14  # so large that whole pixels do not matter
    patches = cutmix_draws(torch.zeros(rows), side, side, alpha, _rng())
    area = (1 - patches.share).double()
    expected = _moment(alpha, 1) - _moment(alpha, 1.5) / 2 + _moment(alpha, 2) / 16
    assert abs(float(area.mean()) - expected) < 4 * float(area.std()) / rows**0.5


def test_centres_are_uniform_over_the_pixels() -> None:
    top, bottom, left, right = (
        cutmix_draws(torch.zeros(20_000), 8, 8, 1000.0, _rng()).box.double().unbind(1)
    )  # alpha 1000: u = 1/2, the side is 8 sqrt(1/2) = 5.66, half of it 2
    for low, high in ((top, bottom), (left, right)):
        counts = torch.bincount((low + high).long(), minlength=17)
        centres = [2, 3, 4, 6, 8, 10, 12, 13]  # of c - 2, cut off at 0, and c + 2, cut off at 8
        assert int(counts.sum()) == int(counts[centres].sum())
        assert ((counts[centres] / 20_000 - 1 / 8).abs() < 4 * 0.0024).all()


def test_the_share_is_that_of_the_pixels_left() -> None:
    labels = torch.arange(300) % 10
    patches = cutmix_draws(labels, 6, 5, 1.0, _rng())
    own, other = torch.zeros(300, 1, 6, 5), torch.ones(300, 1, 6, 5)
    found = pasted(own, other, patches.box)
    assert float((1 - found.mean((1, 2, 3)) - patches.share).abs().max()) < 1e-6
    assert patches.share.dtype == torch.float32
    assert len(patches.share.unique()) > 5


@given(st.lists(st.sampled_from([-1, 0, 3]), min_size=1, max_size=40), st.integers(0, 99))
def test_partners_permute_the_rows_of_either_kind(labels: list[int], seed: int) -> None:
    y = torch.tensor(labels)
    partner = cutmix_draws(y, 4, 4, 1.0, _rng(seed)).partner
    assert sorted(partner.tolist()) == list(range(len(labels)))
    assert torch.equal(y[partner] >= 0, y >= 0)


def test_partners_are_uniform() -> None:
    labels = torch.tensor([0, -1, 2, 1])
    found = torch.stack([cutmix_draws(labels, 4, 4, 1.0, _rng(s)).partner for s in range(1000)])
    counts = torch.bincount(found[:, 0], minlength=4) / 1000
    assert counts[1] == 0 and (counts[[0, 2, 3]] - 1 / 3).abs().max() < 4 * 0.015


def test_pasted_equals_a_loop() -> None:
    images, others = _images(20), 255 - _images(20)
    box = cutmix_draws(torch.zeros(20), 6, 5, 1.0, _rng()).box
    expected = images.clone()
    for b, (top, bottom, left, right) in enumerate(box.tolist()):
        for i in range(top, bottom):
            for j in range(left, right):
                expected[b, :, i, j] = others[b, :, i, j]
    found = pasted(images, others, box)
    assert torch.equal(found, expected) and found.dtype == torch.uint8
    assert not torch.equal(found, images)


# -- all three --------------------------------------------------------------------------------------------

EVERYTHING = TrainConfig(augment_shift=2, augment_flip=True, cutmix=1.0)


def test_nothing_is_changed_unless_asked() -> None:
    images, labels = _images(8), torch.arange(8)
    for config in (TrainConfig(augment_shift=0), IntermediateConfig(augment_shift=0)):
        found, mix = _augmented(images, labels, config)
        assert torch.equal(found, images) and mix is None


def test_crop_then_mirror_then_patch() -> None:
    images, labels = _images(16), torch.arange(16) - 5
    found, mix = _augmented(images, labels, EVERYTHING, seed=3, step=7)
    changed = shifted(images, 2, shift_offsets(16, 2, generator(3, "shift", 7)))
    changed = flipped(changed, flip_draws(16, generator(3, "flip", 7)))
    patches = cutmix_draws(labels, 6, 5, 1.0, generator(3, "cutmix", 7))
    assert torch.equal(found, pasted(changed, changed[patches.partner], patches.box))
    assert mix is not None
    assert torch.equal(mix.labels, labels[patches.partner])
    assert torch.equal(mix.share, patches.share)


def test_mirror_images_leave_the_crops_as_they_are() -> None:
    images, labels = _images(16), torch.arange(16)
    plain, _ = _augmented(images, labels, IntermediateConfig(augment_shift=1))
    found, _ = _augmented(images, labels, IntermediateConfig(augment_shift=1, augment_flip=True))
    mirrored = (found != plain).flatten(1).any(1)
    assert torch.equal(found, flipped(plain, mirrored)) and 0 < int(mirrored.sum()) < 16


def test_the_second_label_is_that_of_the_pixels_that_moved_in() -> None:
    """Every image is one grey level, its label."""
    labels = torch.arange(40)
    images = labels.to(torch.uint8)[:, None, None, None].expand(40, 1, 8, 8)
    found, mix = _augmented(images, labels, TrainConfig(augment_shift=0, cutmix=1.0))
    assert mix is not None
    for i in range(40):
        levels = found[i].flatten().long()
        assert set(levels.tolist()) <= {i, int(mix.labels[i])}
        if int(mix.labels[i]) != i:
            assert float((levels == i).float().mean()) == pytest.approx(float(mix.share[i]))


@pytest.mark.parametrize("cuts", [[0, 16], [0, 5, 16], [0, 4, 8, 12, 16]])
def test_a_ranks_rows_are_those_of_the_whole_batch(cuts: list[int]) -> None:
    images, labels = _images(16), torch.arange(16) % 3 - 1
    whole, mix = _augmented(images, labels, EVERYTHING)
    assert mix is not None
    parts = [_augmented(images, labels, EVERYTHING, slice(a, b)) for a, b in pairwise(cuts)]
    assert torch.equal(torch.cat([x for x, _ in parts]), whole)
    for name in ("labels", "share"):
        joined = torch.cat([getattr(m, name) for _, m in parts])
        assert torch.equal(joined, getattr(mix, name))


def test_draws_are_functions_of_seed_and_step() -> None:
    images, labels = _images(16), torch.arange(16)
    first, _ = _augmented(images, labels, EVERYTHING, seed=1, step=2)
    torch.rand(3), np.random.default_rng().random()  # other generators must not matter
    again, _ = _augmented(images, labels, EVERYTHING, seed=1, step=2)
    assert torch.equal(first, again)
    for seed, step in ((1, 3), (2, 2)):
        other, _ = _augmented(images, labels, EVERYTHING, seed=seed, step=step)
        assert not torch.equal(first, other)
