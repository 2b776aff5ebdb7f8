"""Names in a folder, sorted, in hardly more memory than their bytes: a class may have millions of files."""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Iterator

import numpy as np

from ssat_ray.errors import cannot_be_read


class Names:
    """Distinct file names, joined without gaps by length; they come out sorted by their bytes."""

    def __init__(self) -> None:
        self._of_length: dict[int, bytearray] = {}

    def add(self, name: str) -> None:
        """Only before the first iteration."""
        data = os.fsencode(name)
        self._of_length.setdefault(len(data), bytearray()).extend(data)

    def __len__(self) -> int:
        return sum(len(joined) // length for length, joined in self._of_length.items())

    def __iter__(self) -> Iterator[str]:
        for length, joined in self._of_length.items():
            np.frombuffer(joined, f"S{length}").sort()  # in place: an array of fixed-width bytes
        pieces = (_cut(joined, length) for length, joined in self._of_length.items())
        return map(os.fsdecode, heapq.merge(*pieces))


def _cut(joined: bytearray, length: int) -> Iterator[bytes]:
    return (bytes(joined[i : i + length]) for i in range(0, len(joined), length))


def scan(
    folder: str, wanted: Callable[[str], bool], follow_links: bool = False
) -> tuple[Names, Names]:
    """Names of the wanted files, and of the folders, directly in a folder.

    Args:
        wanted: whether a file of this name counts.
        follow_links: whether a link to a folder is one; otherwise it is left out.

    Raises:
        UserError: the folder cannot be read.
    """
    files, folders = Names(), Names()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    if follow_links or not entry.is_symlink():
                        folders.add(entry.name)
                elif wanted(entry.name):
                    files.add(entry.name)
    except OSError as error:
        raise cannot_be_read(folder, error) from error
    return files, folders
