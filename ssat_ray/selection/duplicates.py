"""Which rows repeat an earlier one, by their hashes, in a bounded number of bytes a row."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ssat_ray.selection.cuts import Bool
from ssat_ray.selection.scores import Array

_PARTS = 256


def find_duplicates(hashes: Iterable[Array], num_rows: int) -> Bool:
    """(N,) mask of the rows whose hash an earlier row has.

    The rows are dealt into parts by the top bits of their hash, and one part is sorted at a time.
    Holds 13 bytes a row, and those of the largest part twice more.

    Args:
        hashes: uint64 (n,) chunks of consecutive rows.
        num_rows: N, of all chunks together.

    Raises:
        ValueError: another number of rows.
    """
    parts: list[list[tuple[Array, Array]]] = [[] for _ in range(_PARTS)]
    position = np.min_scalar_type(num_rows)
    start = 0
    for chunk in hashes:
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
    # Sorting values alone is several times faster than an argsort, and most pools need no more.
    values = np.sort(hashes)
    if not (values[1:] == values[:-1]).any():
        return
    del values
    order = np.argsort(hashes, kind="stable")
    hashes = hashes[order]
    repeats = np.flatnonzero(hashes[1:] == hashes[:-1]) + 1
    rows = np.concatenate([piece[1] for piece in part])
    duplicates[rows[order[repeats]]] = True
