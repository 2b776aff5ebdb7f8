"""Which rows repeat an earlier one, by their hashes, in a bounded number of bytes a row."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ssat_ray.selection.cuts import Bool
from ssat_ray.selection.regroup import regroup
from ssat_ray.selection.scores import Array

_PARTS = 256
_DEALT_ROWS = 1 << 20
"""Rows that are dealt out together: each time takes 512 small arrays, so 80 KB, whatever its rows."""


def find_duplicates(hashes: Iterable[Array], num_rows: int) -> Bool:
    """(N,) mask of the rows whose hash an earlier row has.

    The rows are dealt into parts by the top bits of their hash, and one part is sorted at a time.
    Holds 13 bytes a row, and up to 32 bytes a row of one part while that is sorted: a 256th of the
    rows, unless one image fills the pool.

    Args:
        hashes: uint64 (n,) chunks of consecutive rows.
        num_rows: N, of all chunks together.

    Raises:
        ValueError: another number of rows.
    """
    parts: list[list[tuple[Array, Array]]] = [[] for _ in range(_PARTS)]
    position = np.min_scalar_type(num_rows)
    start = 0
    for chunk in regroup(hashes, _DEALT_ROWS):
        top = (chunk >> np.uint64(56)).astype(np.uint8)
        order = np.argsort(top, kind="stable")
        bounds = np.cumsum(np.bincount(top, minlength=_PARTS))[:-1]
        dealt = np.split(chunk[order], bounds)
        rows = np.split((order + start).astype(position), bounds)
        start += len(chunk)
        for part, piece in zip(parts, zip(dealt, rows, strict=True), strict=True):
            part.append(piece)
    if start != num_rows:
        raise ValueError(f"expected {num_rows} hashes, found {start}")
    duplicates = np.zeros(num_rows, np.bool_)
    for part in parts:
        _mark(part, duplicates)
    return duplicates


def _mark(part: list[tuple[Array, Array]], duplicates: Bool) -> None:
    """Mark all but the first row of each hash in pieces of (hashes, rows), in the order of rows."""
    if not part:
        return
    hashes = np.concatenate([piece[0] for piece in part])
    # Sorting values alone is several times faster than an argsort, which then only the rows need
    # whose hash has the same 16 further bits as some repeated one.
    values = np.sort(hashes)
    repeated = np.zeros(1 << 16, np.bool_)
    repeated[_slot(values[1:][values[1:] == values[:-1]])] = True
    del values
    rows = np.concatenate([piece[1] for piece in part])
    suspects = repeated[_slot(hashes)]
    rows, hashes = rows[suspects], hashes[suspects]
    order = np.argsort(hashes, kind="stable")
    hashes = hashes[order]
    copies = hashes[1:] == hashes[:-1]
    del hashes
    duplicates[rows[order[1:][copies]]] = True


def _slot(hashes: Array) -> Array:
    """The 16 bits after those that chose the part."""
    return (hashes >> np.uint64(40)).astype(np.uint16)
