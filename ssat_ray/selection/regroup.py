"""A stream of arrays cut anew, so that what is done once an array does not depend on how rows came."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from ssat_ray.selection.scores import Array


def regroup(arrays: Iterable[Array], rows: int) -> Iterator[Array]:
    """The rows of `arrays` (n, ...) in arrays of `rows` each, in order; the last has the rest.

    Rows of one array only are a view of it. Holds one array of the result, and one given.
    """
    pending: list[Array] = []
    room = rows
    for array in arrays:
        start = 0
        while start < len(array):
            piece = array[start : start + room]
            pending.append(piece)
            start, room = start + len(piece), room - len(piece)
            if not room:
                yield _joined(pending)
                pending, room = [], rows
    if pending:
        yield _joined(pending)


def _joined(pieces: list[Array]) -> Array:
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
