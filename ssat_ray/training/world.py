"""The process group as the loops see it: rank, slices of the global batch, reductions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class World:
    """Rank, size and device of the process group; a world of one needs no group."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def current(cls, device: torch.device | None = None) -> World:
        """The process group of this process; `device` (None: the CPU) is what its backend exchanges."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size(), device or torch.device("cpu"))
        return cls(device=device or torch.device("cpu"))

    def lengths(self, length: int, multiple: int = 1) -> list[int]:
        """Rows of each rank's part, in rank order; see `part`."""
        units, rest = divmod(length, multiple)
        if rest:
            raise ValueError(f"{length} rows are not whole groups of {multiple}")
        base, extra = divmod(units, self.size)
        return [multiple * (base + (rank < extra)) for rank in range(self.size)]

    def part(self, length: int, multiple: int = 1) -> slice:
        """This rank's contiguous part of `length` rows, in whole `multiple`s of rows.

        Parts differ by at most one `multiple`, of which `length` must be one: ValueError.
        """
        lengths = self.lengths(length, multiple)
        start = sum(lengths[: self.rank])
        return slice(start, start + lengths[self.rank])

    def wrap(self, module: nn.Module) -> nn.Module:
        """DistributedDataParallel over more than one rank, which starts all ranks from the first's state.

        Buffers are not sent before each forward: `batchnorm.update_running` keeps them alike.
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

    def first(self, number: float) -> float:
        """Rank 0's number, on every rank."""
        if self.size == 1:
            return number
        own = number if self.rank == 0 else 0.0
        return float(self.sum(torch.tensor([own], dtype=torch.float64, device=self.device)))

    def rows(self, value: Tensor, lengths: Sequence[int]) -> Tensor:
        """The rows of all ranks in rank order, the same on every rank: (R_r, D) -> (sum of R_r, D).

        Args:
            value: (lengths[rank], D) this rank's rows.
            lengths: rows of each rank.
        """
        if self.size == 1:
            return value
        padded = value.new_zeros(max(lengths), value.shape[1])
        padded[: len(value)] = value
        parts = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(parts, padded)
        return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()
