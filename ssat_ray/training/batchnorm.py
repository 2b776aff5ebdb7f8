"""BatchNorm over fixed groups of samples, so that a step does not depend on the number of workers.

Batch statistics are of `group_size` consecutive rows of the global batch, never of "what this worker
holds"; the running statistics take the mean over all groups of the global batch, in group order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssat_ray.errors import UserError
from ssat_ray.training.world import World


class GroupedBatchNorm(_BatchNorm):
    """BatchNorm whose training statistics are of groups of `group_size` consecutive rows.

    In eval mode it is the module it replaces. In train mode a forward leaves the running statistics
    alone and keeps the groups' own ones until `update_running`; what it computes for one group does not
    depend on the rows beside it. Statistics are never of all workers' rows at once, as SyncBatchNorm's
    are: no communication in the forward, and CPU tensors work.

    Args:
        of: the BatchNorm1d, 2d or 3d to stand for; parameters and buffers are shared, names kept.
        group_size: rows a group.
    """

    def __init__(self, of: _BatchNorm, group_size: int) -> None:
        super().__init__(0, of.eps, of.momentum, of.affine, of.track_running_stats)
        self.num_features = of.num_features
        self.weight, self.bias = of.weight, of.bias
        self.running_mean, self.running_var = of.running_mean, of.running_var
        self.num_batches_tracked = of.num_batches_tracked
        self.group_size = group_size
        self.pending: list[Tensor] = []
        """One (groups, 2, C) a forward of this micro-batch: mean and unbiased variance."""
        self.done: list[Tensor] = []
        """Those of the micro-batches before. A compiled forward depends on the length of `pending`."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) normalised. In train mode B must be a multiple of `group_size`: ValueError."""
        if not self.training:
            return super().forward(x)
        groups, rest = divmod(len(x), self.group_size)
        if rest:
            raise ValueError(f"{len(x)} rows are not whole BatchNorm groups of {self.group_size}")
        found = torch.zeros(groups, 2, self.num_features, dtype=torch.float32, device=x.device)
        outputs = [
            F.batch_norm(part, mean, var, self.weight, self.bias, True, 1.0, self.eps)
            for part, (mean, var) in zip(x.split(self.group_size), found, strict=True)
        ]
        if self.track_running_stats:
            self.pending.append(found)
        return outputs[0] if groups == 1 else torch.cat(outputs)

    def _check_input_dim(self, x: Tensor) -> None:
        """Any dimension: the module it stands for has been chosen by its author."""

    @torch.no_grad()
    def take(self, calls: Sequence[Tensor]) -> None:
        """Move the running statistics by each forward's (2, C) mean over groups, in the order given."""
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        for mean, var in calls:
            self.num_batches_tracked += 1
            momentum = self.momentum
            if momentum is None:  # the mean over all steps
                momentum = 1 / float(self.num_batches_tracked)
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(var, momentum)


def grouped(model: nn.Module, group_size: int) -> nn.Module:
    """The model with every BatchNorm replaced by a `GroupedBatchNorm` that shares its tensors.

    SyncBatchNorm is refused with UserError: its statistics are of all workers' rows by definition.
    """
    for name, module in list(model.named_children()):
        if isinstance(module, nn.SyncBatchNorm):
            raise UserError(
                f"{name} is a SyncBatchNorm; use BatchNorm, the trainer groups it itself"
            )
        if isinstance(module, GroupedBatchNorm):
            module.group_size = group_size
        elif isinstance(module, _BatchNorm):
            model.add_module(name, GroupedBatchNorm(module, group_size).train(module.training))
        else:
            grouped(module, group_size)
    return model


def end_micro_batch(model: nn.Module) -> None:
    """Put the statistics of a micro-batch's forwards aside until `update_running`."""
    for norm in model.modules():
        if isinstance(norm, GroupedBatchNorm):
            norm.done += norm.pending
            norm.pending.clear()


@torch.no_grad()
def update_running(model: nn.Module, world: World, num_groups: int, micro_batches: int = 1) -> None:
    """Apply the statistics of all groups of the global batch, the same on every rank, and forget them.

    A forward's statistics count as one update, as they do in nn.BatchNorm: TRADES, which runs the clean
    and then the adversarial rows, makes two. One exchange for the whole model; the mean over groups is
    taken in float64 and in group order, so it does not depend on who computed which group.

    Args:
        num_groups: groups of the global batch, dealt out as `World.lengths` does.
        micro_batches: parts into which this rank's rows were cut; every module is called equally often
            in each.
    """
    end_micro_batch(model)
    norms = [m for m in model.modules() if isinstance(m, GroupedBatchNorm) and m.done]
    if not norms:
        return
    columns, shapes = [], []
    for norm in norms:
        calls = len(norm.done) // micro_batches
        for call in range(calls):
            found = torch.cat(norm.done[call::calls])
            columns.append(found.flatten(1))
        shapes.append(calls)
        norm.done.clear()
    every = world.rows(torch.cat(columns, dim=1), world.lengths(num_groups))
    means = iter(every.double().mean(0).float().split([c.shape[1] for c in columns]))
    for norm, calls in zip(norms, shapes, strict=True):
        norm.take([next(means).view(2, -1) for _ in range(calls)])
