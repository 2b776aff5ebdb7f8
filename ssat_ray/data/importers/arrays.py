"""Numeric arrays as sources: .npy headers, rows from a stream or from memory, pixels to uint8 NHWC."""

from __future__ import annotations

import io
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from ssat_ray.data.importers.base import (
    BLOCK_BYTES,
    Block,
    DamagedFile,
    ImportOptions,
    Shape,
    Source,
    check_image_bytes,
    check_labels,
    unreadable,
)
from ssat_ray.errors import UserError

RANGES = {"0,1": (0.0, 1.0), "-1,1": (-1.0, 1.0), "0,255": (0.0, 255.0)}
TOLERANCE = 1e-3
"""How far a value may be outside a range that the user gave, as a part of it: resizing leaves such values."""
REAL_SHARE = 0.01
"""How many of the pixels must be outside 0..1 to tell that the range is another one."""
BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError)
MAX_HEADER_BYTES = 2**16


class Rows(ABC):
    """An array read by rows: `name` for messages, `shape` (N, …), `dtype`."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def row_bytes(self) -> int:
        return max(1, int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize)

    @abstractmethod
    def chunks(self, start: int, size: int) -> Iterator[NDArray]:
        """Rows from `start` on, `size` at a time, the last chunk shorter."""


class InMemory(Rows):
    """An array that is in memory anyhow; a view is copied by chunk only."""

    def __init__(self, array: NDArray, name: str) -> None:
        self.array, self.name = array, name
        self.shape, self.dtype = array.shape, array.dtype

    def chunks(self, start: int, size: int) -> Iterator[NDArray]:
        return (self.array[i : i + size] for i in range(start, len(self.array), size))


class NpyStream(Rows):
    """An array in .npy format behind a stream that can be opened again and again.

    Args:
        opened: gives the stream at its beginning.
        num_bytes: the stream's length, which the header must agree with.
        can_seek: skip rows by seeking; otherwise they are read, so that the checksum of a zip member
            covers all of it.

    Raises:
        UserError: object or structured type, Fortran order.
        DamagedFile: no .npy header, or a length that differs from what it says.
    """

    def __init__(
        self, opened: Callable[[], BinaryIO], num_bytes: int, name: str, can_seek: bool
    ) -> None:
        self._opened, self.name, self._can_seek = opened, name, can_seek
        try:
            with opened() as stream:
                self.shape, fortran, self.dtype = _read_header(stream)
                self._data_at = stream.tell()
        except Exception as error:  # NumPy evaluates the header: it can raise nearly anything
            problem = f"{name} is corrupt, or no .npy array: {error}."
            raise unreadable(name, error, problem) from error
        if self.dtype.hasobject:
            raise UserError(
                f"{name} is an object array (a pickle); reading it could run code. Save numeric arrays."
            )
        if self.dtype.kind not in "biuf" or not self.shape or min(self.shape) < 0:
            raise UserError(f"{name} is {self.dtype} {self.shape}; allowed are arrays of numbers.")
        if fortran and len(self.shape) > 1:
            raise UserError(
                f"{name} is in Fortran order, whose rows are scattered over the file. Save it again from "
                "np.ascontiguousarray(array)."
            )
        count = int(np.prod(self.shape, dtype=object))
        expected = self._data_at + count * self.dtype.itemsize
        if expected != num_bytes:
            raise DamagedFile(
                f"{name} is truncated or corrupt: its header says {self.shape} {self.dtype}, so "
                f"{expected} bytes, found {num_bytes}."
            )

    def chunks(self, start: int, size: int) -> Iterator[NDArray]:
        row, total = 0, self.shape[0]
        try:
            with self._opened() as stream:
                if self._can_seek:
                    stream.seek(self._data_at + start * self.row_bytes)
                    row = start
                else:
                    self._read(stream, self._data_at)
                while row < total:
                    count = min(size, total - row) if row >= start else min(size, start - row)
                    data = self._read(stream, count * self.row_bytes)
                    row += count
                    if row > start:
                        yield np.frombuffer(data, self.dtype).reshape(count, *self.shape[1:])
        except BROKEN as error:
            problem = f"{self.name} is corrupt; row {row} was reached: {error}. Get the file again."
            raise unreadable(self.name, error, problem) from error

    @staticmethod
    def _read(stream: BinaryIO, num_bytes: int) -> bytes:
        data = stream.read(num_bytes)
        if len(data) != num_bytes:
            raise EOFError(f"{num_bytes - len(data)} bytes are missing")
        return data


def _read_header(stream: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = npy_format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"format version {version} is for structured arrays")
    length = stream.read(2 if version == (1, 0) else 4)
    size = int.from_bytes(length, "little")
    if size > MAX_HEADER_BYTES:  # NumPy would read and decode it before it looks at the length
        raise ValueError(f"its header has {size} bytes; allowed are {MAX_HEADER_BYTES}")
    header = io.BytesIO(length + stream.read(size))
    if version == (1, 0):
        return npy_format.read_array_header_1_0(header)
    return npy_format.read_array_header_2_0(header)


class Pixels:
    """How the rows of an image array become (n, H, W, C) uint8."""

    def __init__(self, rows: Rows, options: ImportOptions) -> None:
        self.name = rows.name
        self.channels_first, self.shape = _layout(rows, options.layout)
        check_image_bytes(self.shape, rows.name)
        if rows.dtype != np.uint8 and rows.dtype.kind != "f":
            raise UserError(
                f"{rows.name} is {rows.dtype}; images must be uint8 in 0..255, or floating point."
            )
        if rows.dtype == np.uint8 and options.range is not None:
            raise UserError(f"{rows.name} is uint8; --range is for floating-point images.")
        self.range = None if rows.dtype == np.uint8 else options.range or _told_range(rows)
        self._tolerance = 0.0 if options.range is None else TOLERANCE
        layout = "NHW" if len(rows.shape) == 3 else "NCHW" if self.channels_first else "NHWC"
        self.read_as = " ".join(filter(None, (rows.dtype.name, self.range, layout)))

    def __call__(self, raw: NDArray, first_row: int) -> NDArray[np.uint8]:
        """Rows `first_row`, … of the array; UserError names the row of a value outside the range."""
        images = self._to_uint8(raw, first_row) if self.range else raw
        if self.channels_first:
            return np.ascontiguousarray(images.transpose(0, 2, 3, 1))
        return np.ascontiguousarray(images).reshape(len(images), *self.shape)

    def _to_uint8(self, raw: NDArray, first_row: int) -> NDArray[np.uint8]:
        low, high = RANGES[str(self.range)]
        values = raw.astype(np.float64).reshape(len(raw), -1)
        if not (values.min() >= low and values.max() <= high):
            self._check_range(values, first_row)
            np.clip(values, low, high, out=values)
        values -= low
        values *= 255.0 / (high - low)
        return np.rint(values, out=values).astype(np.uint8).reshape(raw.shape)

    def _check_range(self, values: NDArray[np.float64], first_row: int) -> None:
        """UserError naming the first row with a value outside the range by more than the tolerance."""
        low, high = RANGES[str(self.range)]
        slack = self._tolerance * (high - low)
        good = (values >= low - slack) & (values <= high + slack)
        if good.all():
            return
        row = int((~good.all(1)).argmax())
        worst = values[row][~good[row]][0]
        problem = "NaN or infinite pixels" if not np.isfinite(worst) else f"a pixel of {worst:g}"
        raise UserError(
            f"{self.name} row {first_row + row} has {problem}, outside the range {self.range}. "
            "Mend the file, or give its true range with --range (0,1 | -1,1 | 0,255)."
        )


def _layout(rows: Rows, given: str | None) -> tuple[bool, Shape]:
    """(channels come first, (H, W, C)) of an image array (N, H, W), (N, H, W, C) or (N, C, H, W)."""
    shape = rows.shape
    if len(shape) == 3:
        return False, (shape[1], shape[2], 1)
    if len(shape) != 4:
        raise UserError(
            f"{rows.name} has shape {shape}; images must be (N, H, W), (N, H, W, C) or (N, C, H, W)."
        )
    possible = {"NHWC": shape[3] in (1, 3), "NCHW": shape[1] in (1, 3)}
    if given is None:
        if all(possible.values()):
            raise UserError(
                f"{rows.name} has shape {shape}, which could be NHWC or NCHW; --layout says which."
            )
        given = "NCHW" if possible["NCHW"] else "NHWC"
    if not possible[given]:
        raise UserError(f"{rows.name} has shape {shape}; as {given} it has not 1 or 3 channels.")
    if given == "NCHW":
        return True, (shape[2], shape[3], shape[1])
    return False, (shape[1], shape[2], shape[3])


def _told_range(rows: Rows) -> str:
    """The range of a floating-point array, told by its first rows.

    Values down to -0.5 or below mean -1,1 if at least 1 % of the pixels are below -0.05; values from 2 up mean
    0,255 if as many are above 2; else 0,1 if anything is above 0 and nothing below, or above 1. A few values
    outside 0..1 may as well be mistakes or noise, so they tell no range. What is found is checked on every row.
    """
    sample = next(rows.chunks(0, max(1, BLOCK_BYTES // rows.row_bytes)), np.zeros(0))
    low, high = (float(sample.min()), float(sample.max())) if sample.size else (0.0, 0.0)
    if -1 <= low <= -0.5 and high <= 1 and (sample < -0.05).mean() >= REAL_SHARE:
        return "-1,1"
    if low >= 0 and 2 <= high <= 255 and (sample > 2).mean() >= REAL_SHARE:
        return "0,255"
    if low >= 0 and 0 < high <= 1:
        return "0,1"
    if not np.isfinite(sample).all():
        row = int((~np.isfinite(sample.reshape(len(sample), -1)).all(1)).argmax())
        raise UserError(f"{rows.name} row {row} has NaN or infinite pixels.")
    raise UserError(
        f"{rows.name} is {rows.dtype} and its first images span {low:g} to {high:g}, which tells no range; "
        "give it with --range (0,1 | -1,1 | 0,255)."
    )


class ArraySource(Source):
    """Images, and labels if there are any, as two arrays of equal length; `labels_from` is a `Source`'s.

    Raises:
        UserError: shapes, types or lengths that are not allowed.
    """

    def __init__(
        self,
        images: Rows,
        labels: Rows | None,
        options: ImportOptions,
        name: str,
        labels_from: str,
    ) -> None:
        self.name, self._images, self._labels = name, images, labels
        self._pixels = Pixels(images, options)
        self.read_as, self.labels_from = self._pixels.read_as, labels_from
        self.shape, self.rows = self._pixels.shape, images.shape[0]
        if labels is not None:
            _check_label_array(labels, self.rows, images.name)

    @property
    def range(self) -> str | None:
        """The range of floating-point pixels; None for uint8."""
        return self._pixels.range

    def blocks(self, start: int = 0) -> Iterator[Block]:
        size = max(1, BLOCK_BYTES // self._images.row_bytes)
        labels = None if self._labels is None else self._labels.chunks(start, size)
        row = start
        for raw in self._images.chunks(start, size):
            found = np.full(len(raw), -1, np.int64)
            if labels is not None and self._labels is not None:
                found = _to_int64(next(labels).reshape(-1), row, self._labels.name)
            yield Block(self._pixels(raw, row), found)
            row += len(raw)


def _check_label_array(labels: Rows, rows: int, images: str) -> None:
    if labels.dtype.kind not in "iu":
        raise UserError(f"{labels.name} is {labels.dtype}; labels must be integers.")
    if len(labels.shape) > 1 and np.prod(labels.shape[1:]) != 1:
        raise UserError(
            f"{labels.name} has shape {labels.shape}; one-hot or several labels an image are not read. "
            "Save labels.argmax(1) instead."
        )
    if labels.shape[0] != rows:
        raise UserError(f"{labels.name} has {labels.shape[0]} labels, {images} has {rows} images.")


def _to_int64(labels: NDArray, first_row: int, where: str) -> NDArray[np.int64]:
    if labels.dtype.kind == "u":  # so that huge values do not wrap to negative ones
        labels = np.minimum(labels.astype(np.uint64), np.uint64(np.iinfo(np.int64).max))
    found = labels.astype(np.int64)
    check_labels(found, first_row, where)
    return found
