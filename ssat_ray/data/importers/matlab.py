"""SVHN's .mat files (MATLAB 5): X (32, 32, 3, N) uint8, y with 10 standing for 0.

The numeric arrays are parsed here, since SciPy's parser can crash the process on a damaged file. The format:
MathWorks, "MAT-File Format", level 5.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ssat_ray.data.importers.arrays import ArraySource, InMemory
from ssat_ray.data.importers.base import ImportOptions, Source, unreadable
from ssat_ray.errors import UserError

MATRIX, COMPRESSED = 14, 15
STORED = {
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
}
"""Types of what lies in the file …"""
CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}  # fmt: skip
"""… and of the array; MATLAB stores numbers in the smallest type that holds them."""
COMPLEX = 0x0800
MAX_HEADER_BYTES = 2**12


def open_file(path: Path, options: ImportOptions) -> Source:
    """The images of one file, held in memory; they are transposed block by block.

    Raises:
        UserError: X or y is missing, of another shape or not numeric, or the file is of MATLAB 7.3.
        DamagedFile: it is no MATLAB 5 file, or truncated.
    """
    names = options.image_key or "X", options.label_key or "y"
    try:
        with open(path, "rb") as file:
            arrays = _read(file, path, names)
    except MemoryError as error:
        raise UserError(f"{path} asks for more memory than there is.") from error
    except (ValueError, OverflowError, EOFError, OSError, struct.error, zlib.error) as error:
        problem = f"{path} is truncated, or no MATLAB 5 file: {error}."
        raise unreadable(str(path), error, problem) from error
    if names[0] not in arrays:
        found = ", ".join(arrays) or "neither"
        raise UserError(f"{path}: {names[0]} is missing (found {found}); (H, W, C, N) is read.")
    for name in names:
        if name in arrays and arrays[name] is None:
            raise UserError(f"{path}: {name} is no array of numbers; save it as one.")
    images, labels = arrays[names[0]], arrays.get(names[1])
    assert images is not None
    if images.ndim != 4:
        raise UserError(f"{path}: {names[0]} is of shape {images.shape}; (H, W, C, N) is read.")
    rows, labels_from = None, f"there is no {names[1]}; --label-key names another array"
    if labels is not None:
        if labels.dtype.kind == "f" and (labels == np.rint(labels)).all():
            labels = labels.astype(np.int64)  # MATLAB's numbers are doubles unless told otherwise
        labels = labels.reshape(-1)
        if len(labels) and labels.min() >= 1 and labels.max() == 10:
            labels = labels % 10
        rows, labels_from = InMemory(labels, f"{path}: {names[1]}"), f"array {names[1]}"
    per_row = InMemory(np.moveaxis(images, 3, 0), f"{path}: {names[0]}")
    options = replace(options, layout="NHWC")  # as which (H, W, C, N) is handed on
    source = ArraySource(per_row, rows, options, str(path), labels_from)
    source.read_as = source.read_as.replace("NHWC", "HWCN")
    return source


def _read(file: BinaryIO, path: Path, wanted: tuple[str, ...]) -> dict[str, NDArray[Any] | None]:
    """All arrays by name: those that are wanted and numeric, None for the others."""
    header = file.read(128)
    if len(header) < 128 or header[126:] not in (b"IM", b"MI"):
        raise ValueError("it has no header")
    order = "<" if header[126:] == b"IM" else ">"
    if struct.unpack(order + "H", header[124:126])[0] == 0x0200:
        raise UserError(f"{path} is of MATLAB 7.3 (HDF5); save it with -v6 or -v7.")
    size, found = path.stat().st_size, {}
    while head := file.read(8):
        kind, num_bytes = struct.unpack(order + "II", head)
        end = file.tell() + num_bytes
        if kind not in (MATRIX, COMPRESSED) or end > size:
            raise ValueError(
                f"an element of type {kind} with {num_bytes} bytes ends at {end} of {size}"
            )
        if kind == MATRIX:
            name, array = _matrix(file, order, wanted)
        else:
            stream = io.BufferedReader(_Inflating(file, num_bytes))
            if _tag(stream, order).kind != MATRIX:
                raise ValueError("what is compressed is no array")
            name, array = _matrix(stream, order, wanted)
            while array is not None and stream.read(2**16):
                pass  # to the checksum
        found[name] = array
        file.seek(end)
    return found


def _matrix(
    stream: BinaryIO, order: str, wanted: tuple[str, ...]
) -> tuple[str, NDArray[Any] | None]:
    """Name and content of an array whose tag is read."""
    flags = np.frombuffer(_header(stream, order), order + "u4")
    shape = np.frombuffer(_header(stream, order), order + "i4").tolist()
    name = _header(stream, order).decode("latin1")
    kind = CLASSES.get(int(flags[0]) & 0xFF) if len(flags) else None
    if name not in wanted or kind is None or int(flags[0]) & COMPLEX:
        return name, None
    tag = _tag(stream, order)
    if tag.kind not in STORED:
        raise ValueError(f"the numbers of {name} have type {tag.kind}")
    dtype = np.dtype(order + STORED[tag.kind])
    count = int(np.prod(shape, dtype=object))
    if min(shape, default=-1) < 0 or count * dtype.itemsize != tag.num_bytes:
        raise ValueError(f"{name} of shape {tuple(shape)} {dtype} has {tag.num_bytes} bytes")
    values = np.empty(count, dtype)
    if tag.small is not None:
        values[:] = np.frombuffer(tag.small[: tag.num_bytes], dtype)
    elif stream.readinto(values.view(np.uint8)) != tag.num_bytes:  # type: ignore[attr-defined]
        raise EOFError(f"numbers of {name} are missing")
    return name, values.astype(kind, copy=False).reshape(shape, order="F")


class _Tag(NamedTuple):
    """What precedes data: their type and length; up to four bytes are in the tag itself."""

    kind: int
    num_bytes: int
    small: bytes | None


def _tag(stream: BinaryIO, order: str) -> _Tag:
    head = stream.read(8)
    kind, num_bytes = struct.unpack(order + "II", head)
    if kind >> 16:
        return _Tag(kind & 0xFFFF, min(kind >> 16, 4), head[4:])
    return _Tag(kind, num_bytes, None)


def _header(stream: BinaryIO, order: str) -> bytes:
    """A short element, which is padded to multiples of eight bytes."""
    tag = _tag(stream, order)
    if tag.small is not None:
        return tag.small[: tag.num_bytes]
    if tag.num_bytes > MAX_HEADER_BYTES:
        raise ValueError(f"a header of {tag.num_bytes} bytes; allowed are {MAX_HEADER_BYTES}")
    return stream.read(-(-tag.num_bytes // 8) * 8)[: tag.num_bytes]


class _Inflating(io.RawIOBase):
    """The next `num_bytes` of a file, unpacked as they are read; EOFError if the end is missing."""

    def __init__(self, file: BinaryIO, num_bytes: int) -> None:
        self._file, self._left, self._zlib = file, num_bytes, zlib.decompressobj()

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        while not self._zlib.eof:
            packed = self._zlib.unconsumed_tail
            if not packed:
                packed = self._file.read(min(self._left, 2**16))
                self._left -= len(packed)
            if not packed:
                raise EOFError("compressed bytes are missing")
            data = self._zlib.decompress(packed, len(target))
            if data:
                target[: len(data)] = data
                return len(data)
        return 0
