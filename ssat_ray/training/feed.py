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
from ssat_ray.data.batches import generator, interleave, moved
from ssat_ray.data.labelled import unit_float
from ssat_ray.data.windows import rows_a_window
from ssat_ray.training.sources import Images, Resident, Source, Stream, Streamed
from ssat_ray.training.world import World


@dataclass(frozen=True)
class Batch:
    """This rank's rows of a global batch.

    Args:
        x: (B, C, H, W) float32 in [0, 1]. y: (B,) int64.
        of: what the means divide by.
        mix: CutMix's second labels.
        weights: (B,) float32 of the rows in the loss; None: all are 1.
        first: number of the first row in the global batch.
        rng: seed of what a model itself draws, such as dropout.
    """

    x: Tensor
    y: Tensor
    of: Totals
    mix: Mix | None = None
    weights: Tensor | None = None
    first: int = 0
    rng: int = 0

    def rows(self, at: slice) -> Batch:
        """Some of the rows."""
        mix = None if self.mix is None else Mix(self.mix.labels[at], self.mix.share[at])
        weights = None if self.weights is None else self.weights[at]
        first = self.first + at.start
        return Batch(self.x[at], self.y[at], self.of, mix, weights, first, self.rng)


class Feed:
    """Batches of labelled and, with a pool, unlabelled images, in uint8 on `device` until they are used.

    Args:
        labelled: images with labels.
        unlabelled: a pool in memory or one that is streamed; no pool is None.
        config: batch size, BatchNorm group, share of the pool, augmentation.
        seed: decides every draw.
        world: whose rank gets which rows, in whole BatchNorm groups.
        device: of the images and of what comes out.
        pool_weight: of a pool image in the loss; a labelled one's is 1.
        memory_format: of images and noise.
    """

    def __init__(
        self,
        labelled: Images,
        unlabelled: Images | Stream | None,
        config: TrainConfig | IntermediateConfig,
        seed: int,
        world: World,
        device: torch.device,
        pool_weight: float = 1.0,
        memory_format: torch.memory_format = torch.channels_last,
    ) -> None:
        self.config, self.seed, self.device = config, seed, device
        self.memory_format = memory_format
        self.part = world.part(config.batch_size, config.bn_group)
        self.image_shape = tuple(labelled[0].shape[1:])
        num_pool = window_rows = 0
        if unlabelled is not None and isinstance(config, TrainConfig):
            num_pool = config.pool_rows
            window_rows = rows_a_window(config.window_mib, self.image_shape)
        self.num_labelled = config.batch_size - num_pool
        self.order = interleave(self.num_labelled, num_pool)
        self.weights: Tensor | None = None
        if num_pool and pool_weight != 1:
            self.weights = torch.where(self.order < self.num_labelled, 1.0, pool_weight)
        self.sources: list[Source] = [
            Resident(labelled, self.num_labelled, seed, "labelled", device)
        ]
        if unlabelled is not None and num_pool:
            self.sources.append(
                Streamed(unlabelled, num_pool, window_rows, seed, device)
                if isinstance(unlabelled, Stream)
                else Resident(unlabelled, num_pool, seed, "unlabelled", device)
            )

    @property
    def lacks_labels(self) -> bool:
        """Whether any image may have no label."""
        return any(source.lacks_labels for source in self.sources)

    def batch(self, step: int) -> Batch:
        """Global batch `step`, counted from 0."""
        labels = torch.cat([source.draw(step) for source in self.sources])[self.order]
        images, mix = augmented(
            lambda at: self._gathered(self.order[at]),
            labels,
            self.part,
            self.config,
            seed=self.seed,
            step=step,
        )
        x = unit_float(images).contiguous(memory_format=self.memory_format)
        if mix is not None:
            mix = Mix(self._moved(mix.labels), self._moved(mix.share))
        labelled, every = totals(labels, self.weights)
        of = self._moved(labelled), self._moved(every)
        weights = None if self.weights is None else self._moved(self.weights[self.part])
        rng = generator(self.seed, "model", step).initial_seed()
        y = self._moved(labels[self.part])
        return Batch(x, y, of, mix, weights, self.part.start, rng)

    def _gathered(self, at: Tensor) -> Tensor:
        """(b, C, H, W) uint8 of this batch's draws, counted through the labelled ones and then the pool's."""
        if len(self.sources) == 1:
            return self.sources[0].take(at)
        images = torch.empty(len(at), *self.image_shape, dtype=torch.uint8, device=self.device)
        real = at < self.num_labelled
        for source, mine, first in zip(
            self.sources, (real, ~real), (0, self.num_labelled), strict=True
        ):
            images[self._moved(mine.nonzero()[:, 0])] = source.take(at[mine] - first)
        return images

    def close(self) -> None:
        """Read no further."""
        for source in self.sources:
            source.close()

    def noise(self, kind: NoiseKind, step: int) -> Tensor:
        """(B, C, H, W) this rank's rows of the attack's noise, standard normal or uniform in [-1, 1)."""
        shape = (self.config.batch_size, *self.image_shape)
        noise = drawn(kind, shape, generator(self.seed, "attack", step))[self.part]
        return self._moved(noise).contiguous(memory_format=self.memory_format)

    def _moved(self, value: Tensor) -> Tensor:
        return moved(value, self.device)


def drawn(kind: NoiseKind, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Standard normal noise, or uniform in [-1, 1)."""
    if kind == "normal":
        return torch.randn(shape, generator=rng)
    return torch.rand(shape, generator=rng) * 2 - 1
