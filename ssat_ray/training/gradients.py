"""Gradients summed over micro-batches and ranks, on request in float64, where the order does not show."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import GradBucket  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel

from ssat_ray.training.world import World


class GradientSum:
    """A module whose backward passes add up to the gradient of the sum of all ranks' losses.

    The exchange between ranks is DDP's, in the backward of each rank's last micro-batch.

    Args:
        module: its forward returns the loss, or what the loss is made of.
        world: the ranks.
        exact: add the micro-batches' float32 gradients in float64. A sum of float32 numbers in float64
            is exact but for numbers 2^26 apart, so it rounds to the same float32 in any order: who
            computes which micro-batch, and how many ranks there are, changes no bit. Costs twice the
            bytes between ranks, and 8 bytes a parameter with more than one micro-batch.
    """

    def __init__(self, module: nn.Module, world: World, exact: bool) -> None:
        self.parallel = world.wrap(module)
        self.exact = exact
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.kept: dict[Tensor, Tensor] = {}
        """Float64 sums of the micro-batches before the last one."""
        if isinstance(self.parallel, DistributedDataParallel):
            self.parallel.register_comm_hook(None, self._exchange)

    @contextmanager
    def micro_batch(self, first: bool, last: bool) -> Iterator[nn.Module]:
        """The module to call for one micro-batch; run its backward inside. Gradients are whole after the last."""
        if first:
            self.kept.clear()
            for parameter in self.parameters:
                if parameter.grad is not None:
                    parameter.grad.zero_()
        if last or not isinstance(self.parallel, DistributedDataParallel):
            yield self.parallel
        else:
            with self.parallel.no_sync():
                yield self.parallel
        if self.exact and not last:
            self._keep()
        elif last and not isinstance(self.parallel, DistributedDataParallel):
            for kept, total in self.kept.items():
                assert kept.grad is not None
                kept.grad.copy_(total.add_(kept.grad))

    def _keep(self) -> None:
        for parameter in self.parameters:
            if parameter.grad is not None:
                if parameter in self.kept:
                    self.kept[parameter].add_(parameter.grad)
                else:
                    self.kept[parameter] = parameter.grad.double()
                parameter.grad.zero_()

    def _exchange(self, _: None, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        buffer = bucket.buffer()
        total = buffer.double() if self.exact else buffer
        for parameter in bucket.parameters():
            view = parameter.grad  # into the bucket, strided as the parameter is
            if parameter in self.kept and view is not None:
                place = view.storage_offset() - buffer.storage_offset()
                total.as_strided(view.shape, view.stride(), place).add_(self.kept[parameter])
        future: torch.futures.Future[list[Tensor]] = dist.all_reduce(
            total, async_op=True
        ).get_future()

        def summed(done: torch.futures.Future[list[Tensor]]) -> Tensor:
            return buffer.copy_(done.value()[0])

        return future.then(summed)
