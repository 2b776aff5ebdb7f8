"""Embeddings as points of a fixed grid: centred, scaled or projected, and rounded once.

Both refinements (k-means in lloyd.py, mixtures in em.py) sum over points in blocks of one shape, so
that a row's arithmetic depends neither on its neighbours nor on its place, and exactly (exact.py), so that the totals do
not depend on which actor holds which rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from ssat_ray.selection.exact import Grid
from ssat_ray.selection.scores import Array, Float32, Float64

_BLOCK_BYTES = 8 << 20
LEAST_BLOCK_ROWS, MOST_BLOCK_ROWS = 192, 3072
_HEADROOM = 2.0


@dataclass(frozen=True, eq=False)
class Frame:
    """The coordinates of the points: x = (h - mean) components^T * 2^-exponents, rounded to `grid`.

    Attributes:
        mean: (d,) float64, of the sample the frame was fitted on.
        components: (p, d) float64 orthonormal rows of a PCA, or None (p = d).
        exponents: (p,) int64, powers of two by which each coordinate is divided, so exactly.
        grid: of the coordinates. Rows beyond its range stay exact: float32 is coarser there.
    """

    mean: Float64
    components: Float64 | None
    exponents: np.ndarray
    grid: Grid

    @property
    def width(self) -> int:
        return len(self.exponents)

    @classmethod
    def fit(
        cls,
        sample: Array,
        *,
        bits: int,
        scaled: bool = False,
        components: Float64 | None = None,
        mean: Float64 | None = None,
    ) -> Frame:
        """A frame for rows like the sample's.

        Args:
            sample: (n, d) finite embeddings.
            bits: of the grid; at most 24, what float32 holds.
            scaled: divide each coordinate by the power of two next to its standard deviation.
            components: (p, d) orthonormal rows to project onto.
            mean: (d,) to subtract; the sample's if None.
        """
        h = np.asarray(sample, np.float64)
        mean = h.mean(axis=0) if mean is None else mean
        x = h - mean if components is None else (h - mean) @ components.T
        spread = x.std(axis=0)
        exponents = np.frexp(np.where(spread > 0, spread, 1.0))[1] if scaled else 0 * spread
        exponents = exponents.astype(np.int64)
        largest = float(np.abs(np.ldexp(x, -exponents)).max())
        return cls(mean, components, exponents, Grid.for_values(_HEADROOM * largest, bits))

    def points(self, h: Array, out: Float32 | None = None) -> torch.Tensor:
        """(n, d) embeddings -> (n, p) float32 on the grid, the same bits for a row in any batch.

        Args:
            out: (n, p) to write to; a new array if None.
        """
        # NumPy asks for huge pages, torch does not: clearing small ones takes longer than the rest.
        points = torch.from_numpy(
            np.empty((len(h), self.width), np.float32) if out is None else out
        )
        for rows, x in self._coordinates(h):
            points[rows] = self.grid.round_(x)[: rows.stop - rows.start]
        return points

    def largest(self, h: Array) -> float:
        """The largest coordinate of (n, d) embeddings before rounding, without its sign; 0 if n = 0."""
        found = 0.0
        for rows, x in self._coordinates(h):
            found = max(found, float(x[: rows.stop - rows.start].abs().max()))
        return found

    def covering(self, largest: float) -> Frame:
        """The same coordinates on the finest grid of as many bits that reaches `largest`."""
        return replace(self, grid=Grid.for_values(largest, self.grid.bits))

    def _coordinates(self, h: Array) -> Iterator[tuple[slice, torch.Tensor]]:
        """Rows and their float64 coordinates, in blocks of one shape that are overwritten."""
        scale = torch.from_numpy(np.ldexp(1.0, -self.exponents))
        mean = torch.from_numpy(self.mean)
        components = None if self.components is None else torch.from_numpy(self.components.copy())
        size = block_rows(16 * max(len(mean), self.width))
        double = torch.empty(size, len(mean), dtype=torch.float64)
        for rows, block in blocks(torch.from_numpy(np.ascontiguousarray(h)), size):
            x = double.copy_(block).sub_(mean)
            if components is not None:
                x = (components @ x.t()).t()
            if self.exponents.any():
                x = x.mul_(scale)
            yield rows, x


def block_rows(row_bytes: int) -> int:
    """Rows of a block whose temporaries take `row_bytes` a row: 192, 384, 768, 1536 or 3072.

    Small enough for a cache, large enough to hide what a call of an operation costs; at most
    192 rows of 10,000 centroids. Multiples of 192, because a BLAS sums the last rows of a block
    that its kernels (4 to 48 rows wide) do not divide in another order: with 2048 rows MKL's float64
    product gave the last 8 other last bits. Of x (B, p), x^T is to be the right factor: as the left
    one, MKL's vector kernels for few columns depend on the place all the same.
    """
    rows = MOST_BLOCK_ROWS
    while rows > LEAST_BLOCK_ROWS and rows * row_bytes > _BLOCK_BYTES:
        rows //= 2
    return rows


def blocks(x: torch.Tensor, size: int) -> Iterator[tuple[slice, torch.Tensor]]:
    """Row ranges of (n, p) and their rows in blocks of `size`; the last is padded with zeros."""
    for start in range(0, len(x), size):
        stop = min(start + size, len(x))
        block = x[start:stop]
        if stop - start < size:
            block = torch.cat([block, block.new_zeros(size - len(block), x.shape[1])])
        yield slice(start, stop), block
