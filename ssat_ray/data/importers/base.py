"""The contract of an importer: a `Source` yields blocks of uint8 rows, from any row on, in one order."""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssat_ray.errors import UserError, cannot_be_read

BLOCK_BYTES = 4 * 2**20
"""How much of a source is in memory at a time, before conversion."""
MAX_IMAGE_BYTES = 64 * 2**20
"""The largest image, decoded: one row must fit into one shard."""
Shape = tuple[int, int, int]


class DamagedFile(UserError):
    """A file's own checksum or structure is broken, so what was read of it before is in doubt too.

    `first_row` is the first row of the source that is in doubt.
    """

    first_row = 0


CONTENT_ERRNOS = (None, errno.EINVAL, errno.EOVERFLOW)
"""Of an OSError that a file's content can cause: libraries raise some themselves, or seek where nothing can be."""


def unreadable(name: str, error: Exception, problem: str) -> UserError:
    """What to raise for an error that came up while the file `name` was read.

    A `DamagedFile` with the sentence `problem`; unless the error is of the disk or the network, or comes
    from one: then what was read before stays valid, and the same command may succeed later.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno not in CONTENT_ERRNOS:
            return cannot_be_read(name, cause)
        cause = cause.__cause__ or cause.__context__
    return DamagedFile(problem)


@dataclass(frozen=True)
class Block:
    """Consecutive rows: images (n, H, W, C) uint8 and labels (n,) int64, -1 = none."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class ImportOptions:
    """What the user says about the files; None means: find out, or fail if it is ambiguous."""

    format: str | None = None
    image_key: str | None = None
    label_key: str | None = None
    labels: str | None = None
    layout: str | None = None
    range: str | None = None
    shape: Shape | None = None
    size: tuple[int, int] | None = None
    channels: int | None = None


class Source(ABC):
    """Rows of one or more files.

    Attributes:
        name: what messages call it.
        shape: (H, W, C) of every image.
        rows: their number; None if only reading tells.
    """

    name: str
    shape: Shape
    rows: int | None

    @abstractmethod
    def blocks(self, start: int = 0) -> Iterator[Block]:
        """Rows `start`, `start + 1`, …, in blocks of about `BLOCK_BYTES`.

        Raises:
            UserError: something in the file is not allowed; it names the file and the row. Or the file
                cannot be read now.
            DamagedFile: the file is truncated or corrupt.
        """


class Joined(Source):
    """Several sources of one shape, one after the other."""

    def __init__(self, parts: Sequence[Source]) -> None:
        self.parts = list(parts)
        first = self.parts[0]
        for part in self.parts[1:]:
            if part.shape != first.shape:
                raise UserError(
                    f"{part.name} has images of shape {part.shape}, {first.name} of {first.shape}; "
                    "the files of one import must agree (H, W, C)."
                )
        self.name, self.shape = first.name, first.shape
        counts = [part.rows for part in self.parts]
        known = [count for count in counts if count is not None]
        self.rows = sum(known) if len(known) == len(counts) else None
        self.starts = [0]
        """First row of each part, as far as known; reading completes it."""
        for count in counts[:-1]:
            if count is None:
                break
            self.starts.append(self.starts[-1] + count)

    def blocks(self, start: int = 0) -> Iterator[Block]:
        for index, part in enumerate(self.parts):
            first = self.starts[index]
            if index + 1 < len(self.starts) and self.starts[index + 1] <= start:
                continue
            position = max(first, start)
            try:
                for block in part.blocks(position - first):
                    position += len(block.labels)
                    yield block
            except DamagedFile as error:
                error.first_row = first
                raise
            if index + 1 == len(self.starts) < len(self.parts):
                self.starts.append(position)

    def where(self, row: int) -> str:
        """The file of a row and its number there, for messages."""
        index = bisect_right(self.starts[: len(self.parts)], row) - 1
        return f"{self.parts[index].name} row {row - self.starts[index]}"


FORMATS = {
    "npz": (".npz",),
    "npy": (".npy",),
    "parquet": (".parquet", ".pq"),
    "webdataset": (".tar",),
    "pickled": (".pickle", ".pkl"),
    "matlab": (".mat",),
}
"""Module of this package -> the suffixes it is chosen for; a folder is read by `folders`."""


def open_source(paths: Sequence[Path], options: ImportOptions) -> Joined:
    """The rows of these files, in the order given.

    Raises:
        UserError: a file does not exist or is not of a known format, or its importer refuses it.
    """
    if options.labels is not None and len(paths) > 1:
        raise UserError(
            "--labels goes with one image file; import the others with `ssat pool append`."
        )
    return Joined([_opener(path, options)(path, options) for path in paths])


def _opener(path: Path, options: ImportOptions) -> Callable[[Path, ImportOptions], Source]:
    if not path.exists():
        raise UserError(f"{path} does not exist.")
    name = options.format or format_of(path)
    if name != "folders" and path.is_dir():
        raise UserError(f"{path} is a folder; --format {name} reads files.")
    opener: Callable[[Path, ImportOptions], Source] = import_module(
        f"ssat_ray.data.importers.{name}"
    ).open_file
    return opener


def format_of(path: Path) -> str:
    """The format by suffix; UserError if there is none for it."""
    if path.is_dir():
        if (path / "pool.json").is_file():
            raise UserError(f"{path} is a pool already; `ssat pool copy` copies and re-shards it.")
        return "folders"
    for name, suffixes in FORMATS.items():
        if path.suffix.lower() in suffixes:
            return name
    known = ", ".join(suffix for suffixes in FORMATS.values() for suffix in suffixes)
    raise UserError(f"{path}: unknown suffix; known are {known} and folders. --format names one.")


def choose_key(
    names: Sequence[str], given: str | None, synonyms: Sequence[str], option: str, where: str
) -> str | None:
    """Which of `names` holds the images or the labels: the given one, else the only synonym.

    Raises:
        UserError: the given one is missing, or several are possible.
    """
    listed = ", ".join(names) or "none"
    if given is not None:
        if given not in names:
            raise UserError(f"{where} has no {given!r} ({option}); found {listed}.")
        return given
    found = [name for name in names if name.lower() in synonyms]
    if len(found) > 1:
        raise UserError(
            f"{where}: {', '.join(found)} could all be meant; found {listed}. {option} says which."
        )
    return found[0] if found else None


IMAGE_KEYS = ("image", "images", "img", "imgs", "x", "data", "arr_0")
LABEL_KEYS = ("label", "labels", "y", "target", "targets", "extrapolated_targets", "arr_1")


def check_image_bytes(shape: Sequence[int], where: str) -> None:
    """UserError if an image of this shape is too large for a shard, or empty."""
    size = int(np.prod([int(n) for n in shape], dtype=object))
    if not 0 < size <= MAX_IMAGE_BYTES:
        raise UserError(
            f"{where}: images of shape {tuple(shape)} have {size} bytes; allowed are 1 to "
            f"{MAX_IMAGE_BYTES}."
        )


def check_labels(labels: NDArray[np.int64], first_row: int, where: str) -> None:
    """UserError naming the row of a label that is neither a class in 0..32767 nor -1 (none)."""
    bad = (labels < -1) | (labels > np.iinfo(np.int16).max)
    if bad.any():
        row = int(bad.argmax())
        raise UserError(
            f"{where} row {first_row + row}: label {int(labels[row])} is out of range; allowed are "
            "classes from 0 to 32767, and -1 for none."
        )
