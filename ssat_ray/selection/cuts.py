"""Cuts: which values a group takes, found without keeping where they stand, applied chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ssat_ray.selection.scores import Array

Bool = npt.NDArray[np.bool_]
Groups = Array | int
"""The group of each value: (n,) integers from 0, or one number for all of them."""


@dataclass(frozen=True, eq=False)
class Cuts:
    """What each of G groups takes: every value below its limit, and the first so many equal to it.

    Attributes:
        limit: (G,) of the values' type; -inf where a group takes nothing.
        num_at_limit: values equal to the limit that are taken.
        num_equal: values equal to the limit.
    """

    limit: Array
    num_at_limit: list[int]
    num_equal: list[int]

    @classmethod
    def of(cls, values: list[Array], quotas: list[int]) -> Cuts:
        """The cuts by which each group takes its `quota` smallest values, the earlier on ties.

        Args:
            values: floats (n,) of each group, not NaN. They are reordered in place.
            quotas: at most n each.
        """
        limit = np.full(len(values), -np.inf, values[0].dtype)
        num_at_limit, num_equal = [0] * len(values), [0] * len(values)
        for group, (found, quota) in enumerate(zip(values, quotas, strict=True)):
            if quota:
                found.partition(quota - 1)
                limit[group] = found[quota - 1]
                taken = int(np.count_nonzero(found[:quota] == limit[group]))
                beyond = int(np.count_nonzero(found[quota:] == limit[group]))
                num_at_limit[group], num_equal[group] = taken, taken + beyond
        return cls(limit, num_at_limit, num_equal)

    @property
    def highest(self) -> float:
        """The largest limit; -inf if no group takes anything."""
        return float(self.limit.max())

    @property
    def num_tied(self) -> int:
        """Values that share their group's limit with another one."""
        return sum(same for same in self.num_equal if same > 1)

    def taker(self) -> Callable[[Array, Groups], Bool]:
        """A function of a chunk's values (n,) and groups -> mask (n,), to call chunk after chunk."""
        left = list(self.num_at_limit)

        def take(values: Array, groups: Groups) -> Bool:
            limit = self.limit[groups]
            mask = np.asarray(values < limit, np.bool_)
            at_limit = np.flatnonzero(values == limit)
            group_at_limit = np.broadcast_to(groups, values.shape)[at_limit]
            for group in np.unique(group_at_limit):
                first = at_limit[group_at_limit == group][: left[group]]
                mask[first] = True
                left[group] -= len(first)
            return mask

        return take


def split(values: Array, groups: Groups) -> Iterator[tuple[int, Array]]:
    """Each group present, ascending, and its values in their order."""
    if isinstance(groups, int):
        yield groups, values
        return
    values = values[np.argsort(groups, kind="stable")]
    stops = np.cumsum(np.bincount(groups)) if len(groups) else np.zeros(0, np.int64)
    for group in np.flatnonzero(np.diff(stops, prepend=0)):
        yield int(group), values[stops[group - 1] if group else 0 : stops[group]]
