"""The embeddings that a clustering works on: files beside the notes of the parts, gone with them."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator

import numpy as np

from ssat_ray.places import Place, Remote, open_input, write_atomic
from ssat_ray.selection.scores import Array, Float32, Float64, Int64
from ssat_ray.stages.parts import NOTES


def hold(folder: Place, part: int, h: Array, ids: Int64, order: Float64) -> None:
    """Keep the embeddings (n, d) of a part, with their ids and their random order."""
    for name, array in (("h", h), ("ids", ids), ("order", order)):
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        write_atomic(_file(folder, part, name), buffer.getvalue())


class Held:
    """The kept embeddings of some parts, mapped into memory, or read into it from an object store.

    Args:
        folder: of the job.
        parts: numbers of the parts.
    """

    def __init__(self, folder: Place, parts: list[int]) -> None:
        self.folder, self.parts = folder, parts

    def _map(self, part: int, name: str) -> Array:
        path = _file(self.folder, part, name)
        array: Array = np.load(
            io.BytesIO(path.read_bytes()) if isinstance(path, Remote) else path,
            mmap_mode=None if isinstance(path, Remote) else "r",
        )
        return array

    def _headers(self) -> Iterator[tuple[tuple[int, ...], np.dtype]]:
        """Shape and type of each part's embeddings, without reading them."""
        for part in self.parts:
            with open_input(_file(self.folder, part, "h")) as file:
                assert np.lib.format.read_magic(file) == (1, 0), "np.save writes version 1.0"
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            yield shape, dtype

    def embeddings(self) -> Iterator[Array]:
        """(n, d) of each part."""
        return (self._map(part, "h") for part in self.parts)

    def _orders(self) -> Iterator[Float64]:
        return (self._map(part, "order") for part in self.parts)

    def ids(self) -> Int64:
        return np.concatenate([np.array(self._map(part, "ids")) for part in self.parts])

    @property
    def num_rows(self) -> int:
        return sum(shape[0] for shape, _ in self._headers())

    @property
    def num_bytes(self) -> int:
        """Of the embeddings as they are stored."""
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in self._headers())

    def point_bytes(self, width: int) -> int:
        """Of float32 points of this width made of them."""
        return 4 * width * self.num_rows

    def sample(self, rows: int) -> Float32:
        """The `rows` embeddings with the lowest order, by id: (rows, d), or all if there are fewer.

        It does not depend on how the pool is cut into parts.
        """
        cut = sample_cut(self._orders(), rows)
        chosen = [
            np.asarray(h[np.flatnonzero(order < cut)], np.float32)
            for h, order in zip(self.embeddings(), self._orders(), strict=True)
        ]
        return np.concatenate(chosen)


def sample_cut(orders: Iterable[Array], rows: int) -> float:
    """The order below which the `rows` lowest are, or fewer where some tie with it; infinity for all.

    Keeps about twice as many numbers at most, and one array (n,) of `orders`.
    """
    lowest: list[Array] = []
    count, bound = 0, np.inf
    for order in orders:
        lowest.append(order[order <= bound])
        count += len(lowest[-1])
        if count > 2 * (rows + 1):
            count = rows + 1
            lowest = [np.partition(np.concatenate(lowest), rows)[:count].copy()]
            bound = float(lowest[0].max())
    if count <= rows:
        return np.inf
    return float(np.partition(np.concatenate(lowest), rows)[rows])


def _file(folder: Place, part: int, name: str) -> Place:
    return folder / NOTES / f"{name}-{part:05d}.npy"
