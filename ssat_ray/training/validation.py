"""Accuracy on the validation images, clean and under PGD, in blocks that do not depend on the number of workers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssat_ray.adversarial.attacks import RANDOM_NOISE, frozen, pgd, random_start
from ssat_ray.config import ThreatConfig
from ssat_ray.data.batches import generator
from ssat_ray.data.labelled import unit_float
from ssat_ray.training.feed import drawn
from ssat_ray.training.sources import Images
from ssat_ray.training.step import Engine
from ssat_ray.training.world import World


class Validation:
    """Validation images and the attack on them.

    The images are cut into blocks of `block_rows`, the last one shorter, and whole blocks are dealt to the
    ranks in turn. A library chooses its algorithm by the shape of a batch, so the shapes must not depend on who
    is there to share the work.

    Args:
        images: (N, C, H, W) uint8 and labels (N,).
        threat: norm and radius of the attack, whose steps are eps / 4.
        num_steps: of the attack.
        block_rows: images that the model sees at once.
        world: whose rank gets which blocks.
        engine: where and in which memory format the model runs.
    """

    def __init__(
        self,
        images: Images,
        threat: ThreatConfig,
        num_steps: int,
        block_rows: int,
        world: World,
        engine: Engine,
    ) -> None:
        self.images, self.labels = images
        self.threat, self.num_steps, self.block_rows = threat, num_steps, block_rows
        self.world, self.engine = world, engine
        kind = RANDOM_NOISE[threat.norm]
        self.noise = drawn(kind, self.images.shape, generator(0, "evaluate", 0))
        """(N, C, H, W) start of the attack on each image, the same at every evaluation of every run."""

    def accuracies(self, model: nn.Module) -> tuple[float, float]:
        """Clean and PGD accuracy (percent) over all ranks' images, in float32; every rank calls."""
        right = torch.zeros(2, dtype=torch.float64, device=self.engine.device)
        for rows, logits in self.logits(model):
            right += (logits.argmax(2) == self.labels[rows].to(self.engine.device)).sum(1)
        clean, robust = (100 * self.world.sum(right) / len(self.labels)).tolist()
        return clean, robust

    def logits(self, model: nn.Module) -> Iterator[tuple[slice, Tensor]]:
        """For each block of this rank its rows, and (2, B, K) logits: clean, and under the attack."""
        starts = range(0, len(self.labels), self.block_rows)
        with frozen(model):
            for start in starts[self.world.rank :: self.world.size]:
                rows = slice(start, min(start + self.block_rows, len(self.labels)))
                x, y, noise = (
                    value[rows].to(self.engine.device)
                    for value in (self.images, self.labels, self.noise)
                )
                x = unit_float(x).contiguous(memory_format=self.engine.memory_format)
                x_adv = self._attacked(model, x, y, noise)
                with torch.no_grad():
                    logits = torch.stack([model(v) for v in (x, x_adv)])
                yield rows, logits

    def _attacked(self, model: nn.Module, x: Tensor, y: Tensor, noise: Tensor) -> Tensor:
        eps, norm = self.threat.eps, self.threat.norm
        return pgd(
            model,
            x,
            lambda logits: F.cross_entropy(logits, y, reduction="sum"),
            eps=eps,
            step_size=eps / 4,
            num_steps=self.num_steps,
            start=random_start(x, noise, eps, norm),
            norm=norm,
        )
