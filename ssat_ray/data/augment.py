"""How the images of a batch are changed: crops, mirror images and CutMix, functions of (seed, step) alone.

Every draw is for the whole global batch; a rank makes its own rows only, and needs the CutMix partners of
those besides. Work is on uint8 images, on whatever device they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssat_ray.config import OptimiserConfig, TrainConfig
from ssat_ray.data.batches import generator, moved, shift_offsets, shifted


class Mix(NamedTuple):
    """The second label of each row (B,) int64, -1 where its own is, and the share (B,) float32 of its own."""

    labels: Tensor
    share: Tensor


class Patches(NamedTuple):
    """CutMix of a whole batch: whose patch each row gets, and where.

    partner: (B,) int64 positions in the batch. box: (B, 4) int64 top, bottom, left, right; bottom and right
    are the first row and column outside. share: (B,) float32 of the pixels that stay the row's own.
    """

    partner: Tensor
    box: Tensor
    share: Tensor


def augmented(
    images: Callable[[Tensor], Tensor],
    labels: Tensor,
    part: slice,
    config: OptimiserConfig,
    *,
    seed: int,
    step: int,
) -> tuple[Tensor, Mix | None]:
    """The rows `part` of global batch `step`: cropped, then mirrored, then with another row's patch.

    Args:
        images: gives the images (b, C, H, W) uint8 at positions (b,) of the global batch.
        labels: (B,) of the global batch, -1 = none.
        config: which of the three, and how much.

    Returns:
        (b, C, H, W) uint8 and, with CutMix, the second labels of these rows.
    """
    size, shift = len(labels), config.augment_shift
    offsets = shift_offsets(size, shift, generator(seed, "shift", step))
    mirrored = flip_draws(size, generator(seed, "flip", step)) if config.augment_flip else None

    def changed(rows: Tensor) -> Tensor:
        found = images(rows)
        found = shifted(found, shift, moved(offsets[rows], found.device))
        return found if mirrored is None else flipped(found, mirrored[rows])

    own = torch.arange(size)[part]
    found = changed(own)
    if not isinstance(config, TrainConfig) or config.cutmix == 0:
        return found, None
    height, width = found.shape[-2:]
    rng = generator(seed, "cutmix", step)
    patches = cutmix_draws(labels, height, width, config.cutmix, rng)
    partner = patches.partner[own]
    found = pasted(found, changed(partner), patches.box[own])
    return found, Mix(labels[partner], patches.share[own])


def flip_draws(batch: int, rng: torch.Generator) -> Tensor:
    """(batch,) bool, each True with probability one half."""
    return torch.rand(batch, generator=rng) < 0.5


def flipped(images: Tensor, mirrored: Tensor) -> Tensor:
    """Images (B, C, H, W), those where `mirrored` (B,) is True turned left to right."""
    mirrored = moved(mirrored, images.device)[:, None, None, None]
    return torch.where(mirrored, images.flip(3), images)


def cutmix_draws(
    labels: Tensor, height: int, width: int, alpha: float, rng: torch.Generator
) -> Patches:
    """Whose patch each row of a batch gets, and where.

    The patch takes the share 1 - lambda of the image before it is cut off at the edges, lambda ~
    Beta(alpha, alpha); its centre is uniform over the pixels. Each row has a box of its own; published code
    draws one for a batch, which has the same mean and more noise. Partners are a permutation of the rows with
    a label, and another of those without: every mixed image has two labels or none.

    Args:
        labels: (B,), -1 = none.
        height, width: of the images.
        alpha: above 0.

    Source: Yun et al. 2019, CutMix (arXiv 1905.04899), section 3.1; for robust training Rebuffi et al. 2021.
    """
    batch = len(labels)
    order = torch.randperm(batch, generator=rng)
    partner = torch.empty_like(order)
    for kind in (labels >= 0, labels < 0):
        partner[kind.nonzero()[:, 0]] = order[kind[order]]
    centre = torch.rand(batch, 2, generator=rng) * torch.tensor([height, width])
    seed = int(torch.randint(2**62, (), generator=rng))
    own = torch.from_numpy(np.random.default_rng(seed).beta(alpha, alpha, batch))
    edges = []
    for side, at in ((height, centre[:, 0].long()), (width, centre[:, 1].long())):
        half = (side * (1 - own).sqrt()).long() // 2
        edges += [(at - half).clamp(0, side), (at + half).clamp(0, side)]
    top, bottom, left, right = edges
    share = 1 - (bottom - top) * (right - left) / (height * width)
    return Patches(partner, torch.stack(edges, dim=1), share.float())


def pasted(images: Tensor, others: Tensor, box: Tensor) -> Tensor:
    """Images (B, C, H, W) with the pixels of `others` inside each row's box (B, 4)."""
    top, bottom, left, right = moved(box, images.device)[:, :, None].unbind(1)
    rows = torch.arange(images.shape[2], device=images.device)
    columns = torch.arange(images.shape[3], device=images.device)
    inside_rows = (rows >= top) & (rows < bottom)
    inside_columns = (columns >= left) & (columns < right)
    inside = inside_rows[:, None, :, None] & inside_columns[:, None, None, :]
    return torch.where(inside, others, images)
