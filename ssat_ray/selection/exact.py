"""Sums that do not depend on the order of their terms: float64 on a power-of-two grid.

Numbers are rounded once to integer multiples of a power of two. While every partial sum stays below
2^53 units float64 adds them without rounding, so any matrix product, block size, thread count, shard
or actor gives the same bits. Totals over blocks go into two integers, so their size has no limit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import torch

from ssat_ray.selection.scores import Float64, Int64

_MANTISSA = 53
_LOW_BITS = 26
_PIECE = 512


@dataclass(frozen=True)
class Grid:
    """Multiples of 2**exponent, up to 2**bits of them each way.

    Args:
        exponent: of the unit.
        bits: magnitude of the largest number meant for the grid, in units, as a power of two.
    """

    exponent: int
    bits: int

    @classmethod
    def for_values(cls, largest: float, bits: int) -> Grid:
        """The finest grid on which numbers up to `largest` take at most `bits` bits."""
        if not math.isfinite(largest) or largest < 0:
            raise ValueError(f"the largest number must be finite and >= 0, found {largest}")
        return cls((math.frexp(largest)[1] if largest else 0) - bits, bits)

    @property
    def unit(self) -> float:
        return math.ldexp(1.0, self.exponent)

    def round_(self, x: torch.Tensor) -> torch.Tensor:
        """x rounded to the grid (half to even) in place: adding a large number drops what is below the unit.

        Numbers from 2**(mantissa bits - 2) units on need not be on the grid afterwards if they are
        negative; positive ones are, rounded to coarser multiples.
        """
        shift = 1.5 * self.unit / torch.finfo(x.dtype).eps
        return x.add_(shift).sub_(shift)

    def times(self, other: Grid) -> Grid:
        """The grid on which products of the two grids' numbers lie."""
        return Grid(self.exponent + other.exponent, self.bits + other.bits)

    @property
    def block_rows(self) -> int:
        """How many numbers of the grid's range can be added exactly in float64."""
        if self.bits >= _MANTISSA:
            raise ValueError(f"numbers of {self.bits} bits cannot be added exactly in float64")
        return 1 << (_MANTISSA - self.bits)


class ExactSum:
    """The exact total of float64 blocks that are multiples of one grid's unit.

    Args:
        shape: of each block and of the total.
        grid: of the terms; every block must be below 2**53 units.
    """

    def __init__(self, shape: tuple[int, ...], grid: Grid) -> None:
        self.grid = grid
        self._high: Int64 = np.zeros(shape, np.int64)
        self._low: Int64 = np.zeros(shape, np.int64)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._high.shape

    def __getitem__(self, rows: slice) -> ExactSum:
        """A copy of some rows of the total."""
        high, low = self._high[rows].copy(), self._low[rows].copy()
        found = ExactSum(high.shape, self.grid)
        found._high, found._low = high, low
        return found

    def add(self, block: torch.Tensor | Float64) -> None:
        """Add one block sum; raises OverflowError where it may already have been rounded."""
        values = block.cpu().numpy() if isinstance(block, torch.Tensor) else block
        units = np.ldexp(np.asarray(values, np.float64), -self.grid.exponent)
        if not (np.abs(units) < 2.0**_MANTISSA).all():
            raise OverflowError("a block sum is not finite or left the range float64 adds exactly")
        whole = units.astype(np.int64)
        self._high += whole >> _LOW_BITS
        self._low += whole & ((1 << _LOW_BITS) - 1)

    def merge(self, other: ExactSum) -> ExactSum:
        """Add another total of the same grid and shape; returns self."""
        if other.grid != self.grid or other.shape != self.shape:
            raise ValueError("only totals of one grid and shape can be merged")
        self._high += other._high
        self._low += other._low
        return self

    def value(self) -> Float64:
        """The total as float64, rounded once from the integers: a function of the terms alone."""
        high = self._high + (self._low >> _LOW_BITS)
        low = self._low & ((1 << _LOW_BITS) - 1)
        total = high.astype(np.float64) * 2.0**_LOW_BITS + low
        return np.asarray(np.ldexp(total, self.grid.exponent), np.float64)


def add_product(total: Float64, a: torch.Tensor, b: torch.Tensor) -> None:
    """total (m, n) += a (m, B) @ b (B, n) in float64, exact if all sums are.

    By NumPy's BLAS over pieces of B: torch's takes twice as long on some processors. They would
    give the same bits.
    """
    left, right = a.numpy(), b.numpy()
    for start in range(0, len(right), _PIECE):
        piece = slice(start, start + _PIECE)
        total += left[:, piece] @ right[piece]


class Mergeable(Protocol):
    """Statistics of some rows that take in those of others."""

    def merge(self, other: Self) -> Self: ...
