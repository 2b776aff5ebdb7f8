"""The contract of an importer: a `Source` yields blocks of uint8 rows, from any row on, in one order."""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ssat_ray.data.fingerprints import is_pool
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
        read_as: how images are read, for example "float32 0,1 NCHW".
        labels_from: where the labels are, or why there are none.
        class_names: of the labels 0, 1, …; empty if the source has numbers only.
    """

    name: str
    shape: Shape
    rows: int | None
    read_as: str
    labels_from: str
    class_names: Sequence[str] = ()

    @abstractmethod
    def blocks(self, start: int = 0) -> Iterator[Block]:
        """Rows `start`, `start + 1`, …, in blocks of about `BLOCK_BYTES`.

        Raises:
            UserError: something in the file is not allowed; it names the file and the row. Or the file
                cannot be read now.
            DamagedFile: the file is truncated or corrupt.
        """


class Joined(Source):
    """Several sources of one shape, one after the other.

    Labels of sources with class names are numbered by `class_names`: the sorted names of all of them, unless
    `class_names` is set to others. All names of the sources must be among them.
    """

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
        self.read_as = "; ".join(dict.fromkeys(part.read_as for part in self.parts))
        self.labels_from = "; ".join(dict.fromkeys(part.labels_from for part in self.parts))
        self.class_names = first.class_names
        if any(part.class_names != first.class_names for part in self.parts):
            names = {name for part in self.parts for name in part.class_names}
            self.class_names = sorted(names, key=os.fsencode)
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
                    labels = self._numbered(block.labels, part, position - first)
                    position += len(labels)
                    yield Block(block.images, labels)
            except DamagedFile as error:
                error.first_row = first
                raise
            if index + 1 == len(self.starts) < len(self.parts):
                if position == start:  # it may end before
                    position = first + sum(len(block.labels) for block in part.blocks())
                self.starts.append(position)

    def _numbered(
        self, labels: NDArray[np.int64], part: Source, first_row: int
    ) -> NDArray[np.int64]:
        if not part.class_names or part.class_names == self.class_names:
            return labels
        nameless = labels >= len(part.class_names)
        if nameless.any():
            row = int(nameless.argmax())
            raise UserError(
                f"{part.name} row {first_row + row}: label {int(labels[row])} has no name, and the classes "
                f"before it have ({', '.join(part.class_names)})."
            )
        numbers = [self.class_names.index(name) for name in part.class_names]
        return np.array([*numbers, -1])[labels]  # -1 is the last one

    def where(self, row: int) -> str:
        """The file of a row and its number there, for messages."""
        index = bisect_right(self.starts[: len(self.parts)], row) - 1
        return f"{self.parts[index].name} row {row - self.starts[index]}"


class Format(NamedTuple):
    """What the user calls it, the suffixes it is chosen for, and the options that it uses."""

    name: str
    suffixes: tuple[str, ...]
    options: tuple[str, ...]


KEYS = ("image_key", "label_key")
FORMATS = {
    "npz": Format("npz", (".npz",), (*KEYS, "labels", "layout", "range")),
    "npy": Format("npy", (".npy",), ("labels", "layout", "range")),
    "parquet": Format("parquet", (".parquet", ".pq"), (*KEYS, "shape", "size", "channels")),
    "webdataset": Format("tar", (".tar",), (*KEYS, "size", "channels")),
    "pickled": Format("pickle", (".pickle", ".pkl"), (*KEYS, "layout", "range")),
    "matlab": Format("mat", (".mat",), (*KEYS, "range")),
    "folders": Format("folder", (), ("size", "channels")),
    "pools": Format("pool", (), ()),
}
"""By module of this package; what is a folder has no suffix."""
GZIP = (".gz", ".tgz")


def open_source(paths: Sequence[Path], options: ImportOptions) -> Joined:
    """The rows of these files, in the order given.

    Raises:
        UserError: a file does not exist or is not of a known format, its importer refuses it, or none of the
            formats uses one of the options.
    """
    if options.labels is not None and len(paths) > 1:
        raise UserError(
            "--labels goes with one image file; import the others with `ssat pool append`."
        )
    formats = [_format(path, options) for path in paths]
    for option, value in asdict(options).items():
        users = [module for module, about in FORMATS.items() if option in about.options]
        if value is not None and option != "format" and not set(users) & set(formats):
            raise UserError(
                f"--{option.replace('_', '-')} says nothing about {paths[0]} ({FORMATS[formats[0]].name}); it is "
                f"for {', '.join(FORMATS[user].name for user in users)}."
            )
    return Joined([_opener(name)(path, options) for name, path in zip(formats, paths, strict=True)])


def _opener(name: str) -> Callable[[Path, ImportOptions], Source]:
    opener: Callable[[Path, ImportOptions], Source] = import_module(
        f"ssat_ray.data.importers.{name}"
    ).open_file
    return opener


def _format(path: Path, options: ImportOptions) -> str:
    """The format of a file that may be read."""
    if not path.exists():
        raise UserError(f"{path} does not exist.")
    if path.is_file():
        if path.suffix.lower() in GZIP:
            raise UserError(f"{path}: gzip is not read; `gunzip {path}` first.")
        check_not_empty(path)
    name = options.format or format_of(path)
    if FORMATS[name].suffixes and path.is_dir():
        raise UserError(f"{path} is a folder; --format {FORMATS[name].name} reads files.")
    return name


def format_of(path: Path) -> str:
    """The format by suffix; UserError if there is none for it."""
    if path.is_dir():
        return "pools" if is_pool(path) else "folders"
    for name, about in FORMATS.items():
        if path.suffix.lower() in about.suffixes:
            return name
    known = ", ".join(suffix for about in FORMATS.values() for suffix in about.suffixes)
    raise UserError(f"{path}: unknown suffix; known are {known} and folders. --format names one.")


def check_not_empty(path: Path) -> None:
    """DamagedFile if a file has no bytes; UserError if it cannot be read."""
    try:
        with open(path, "rb") as file:
            if path.stat().st_size == 0 and not file.read(1):
                raise DamagedFile(f"{path} is empty: it has 0 bytes.")
    except OSError as error:
        raise cannot_be_read(path, error) from error


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


def no_labels(kind: str, synonyms: Sequence[str], found: Sequence[str]) -> str:
    """`labels_from` of a file in which nothing is called like labels."""
    listed = ", ".join(found[:10]) + (", …" if len(found) > 10 else "")
    there = f" (there is {listed})" if found else ""
    return f"no {kind} is called {', '.join(synonyms)}{there}; --label-key names one"


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
