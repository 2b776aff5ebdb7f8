"""The process group as the loops see it: rank, slices of the global batch, reductions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class World:
    """Rank and size of the process group; a world of one needs no group."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> World:
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    def part(self, length: int) -> slice:
        """This rank's contiguous part of `length` rows; parts differ by at most one row."""
        base, extra = divmod(length, self.size)
        start = self.rank * base + min(self.rank, extra)
        return slice(start, start + base + (self.rank < extra))

    def wrap(self, module: nn.Module) -> nn.Module:
        """DistributedDataParallel over more than one rank, which starts all ranks from the first's state.

        After that, buffers are averaged by `average_buffers` and not sent before each forward.
        """
        if self.size == 1:
            return module
        return DistributedDataParallel(
            module, forward_sync_buffers=False, gradient_as_bucket_view=True
        )

    def sum(self, value: Tensor) -> Tensor:
        """Sum over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def average_buffers(self, module: nn.Module) -> None:
        """Average floating-point buffers (BatchNorm running statistics) over ranks: one reduction."""
        if self.size == 1:
            return
        buffers = [b for b in module.buffers() if b.is_floating_point()]
        if not buffers:
            return
        flat = self.sum(torch.cat([b.reshape(-1) for b in buffers])).div_(self.size)
        for buffer, part in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
            buffer.copy_(part.view_as(buffer))

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()
