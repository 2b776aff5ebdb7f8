"""This rank's rows of every global batch: images and labels, shifts and attack noise.

Which images make a batch, how they are shifted and what noise they get are drawn for the whole global batch
from (seed, step) and sliced by rank, so they do not depend on the number of workers and need no saved state.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ssat_ray.adversarial.attacks import NoiseKind
from ssat_ray.adversarial.losses import Totals, totals
from ssat_ray.config import IntermediateConfig, TrainConfig
from ssat_ray.data.augment import Mix, augmented
from ssat_ray.data.batches import epoch_indices, generator, interleave
from ssat_ray.data.labelled import unit_float
from ssat_ray.training.world import World

Images = tuple[Tensor, Tensor]
"""(N, C, H, W) uint8 images and (N,) int64 labels, -1 = none."""


@dataclass(frozen=True)
class Batch:
    """This rank's rows: x (B, C, H, W) float32 in [0, 1], y (B,) int64, CutMix's second labels, and what the
    means divide by."""

    x: Tensor
    y: Tensor
    of: Totals
    mix: Mix | None = None

    def rows(self, at: slice) -> tuple[Tensor, Tensor, Mix | None]:
        """Some of the rows: x, y and the second labels."""
        mix = None if self.mix is None else Mix(self.mix.labels[at], self.mix.share[at])
        return self.x[at], self.y[at], mix


class Feed:
    """Batches of labelled and, with a pool, unlabelled images, resident on `device` in uint8.

    Args:
        labelled, unlabelled: images with labels; no pool is None.
        config: batch size, BatchNorm group, share of the pool, augmentation.
        seed: decides every draw.
        world: whose rank gets which rows, in whole BatchNorm groups.
        device: of the images and of what comes out.
    """

    def __init__(
        self,
        labelled: Images,
        unlabelled: Images | None,
        config: TrainConfig | IntermediateConfig,
        seed: int,
        world: World,
        device: torch.device,
    ) -> None:
        self.config, self.seed, self.device = config, seed, device
        self.part = world.part(config.batch_size, config.bn_group)
        self.num_pool, sources = 0, [labelled]
        if unlabelled is not None and isinstance(config, TrainConfig):
            self.num_pool = round(config.batch_size * config.unsup_fraction)
            sources += [unlabelled] if self.num_pool else []
        self.images = [images.to(device) for images, _ in sources]
        self.labels = torch.cat([labels for _, labels in sources])
        self.num_labelled = len(labelled[0])
        self.order = interleave(config.batch_size - self.num_pool, self.num_pool)

    @property
    def lacks_labels(self) -> bool:
        """Whether any image has no label."""
        return bool((self.labels < 0).any())

    def batch(self, step: int) -> Batch:
        """Global batch `step`, counted from 0."""
        size = self.config.batch_size
        rows = epoch_indices(self.num_labelled, size - self.num_pool, self.seed, "labelled", step)
        if self.num_pool:
            pool = epoch_indices(len(self.images[1]), self.num_pool, self.seed, "unlabelled", step)
            rows = torch.cat([rows, pool + self.num_labelled])[self.order]
        labels = self.labels[rows]
        images, mix = augmented(
            lambda at: self._gathered(rows[at]),
            labels,
            self.part,
            self.config,
            seed=self.seed,
            step=step,
        )
        x = unit_float(images).contiguous(memory_format=torch.channels_last)
        if mix is not None:
            mix = Mix(self._moved(mix.labels), self._moved(mix.share))
        labelled, every = totals(labels)
        of = self._moved(labelled), self._moved(every)
        return Batch(x, self._moved(labels[self.part]), of, mix)

    def _gathered(self, rows: Tensor) -> Tensor:
        """(B, C, H, W) uint8 of rows that count through the labelled images and then the pool's."""
        if len(self.images) == 1:
            return self.images[0][self._moved(rows)]
        real = rows < self.num_labelled
        images = self.images[0].new_empty(len(rows), *self.images[0].shape[1:])
        images[self._moved(real.nonzero()[:, 0])] = self.images[0][self._moved(rows[real])]
        images[self._moved((~real).nonzero()[:, 0])] = self.images[1][
            self._moved(rows[~real] - self.num_labelled)
        ]
        return images

    def noise(self, kind: NoiseKind, step: int) -> Tensor:
        """(B, C, H, W) this rank's rows of the attack's noise, standard normal or uniform in [-1, 1)."""
        shape = (self.config.batch_size, *self.images[0].shape[1:])
        noise = drawn(kind, shape, generator(self.seed, "attack", step))[self.part]
        return self._moved(noise).contiguous(memory_format=torch.channels_last)

    def _moved(self, value: Tensor) -> Tensor:
        """On the device, without waiting for it."""
        if self.device.type == "cpu":
            return value
        return value.pin_memory().to(self.device, non_blocking=True)


def drawn(kind: NoiseKind, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Standard normal noise, or uniform in [-1, 1)."""
    if kind == "normal":
        return torch.randn(shape, generator=rng)
    return torch.rand(shape, generator=rng) * 2 - 1
