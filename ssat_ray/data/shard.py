"""Shards: rows of a pool in memory and as Parquet files, and how a stream of rows is cut into them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ssat_ray.data.folder import Folder
from ssat_ray.data.mix64 import GOLDEN, mix64
from ssat_ray.places import Place

SHARD_BYTES = 64 * 2**20
SHARD_ROWS = 2**18
UNREADABLE = (pa.ArrowException, OSError, KeyError, UnicodeDecodeError)
"""What Arrow raises for a damaged file; KeyError: a column is missing."""
ShardEntry = dict[str, Any]
T = TypeVar("T", bound=np.integer)


@dataclass(frozen=True)
class Shard:
    """One shard in memory: ids (n,) int64, images (n, H, W, C) uint8, labels (n,) int64, -1 = none."""

    ids: NDArray[np.int64]
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __getitem__(self, rows: slice | NDArray[Any]) -> Shard:
        return Shard(self.ids[rows], self.images[rows], self.labels[rows])

    @classmethod
    def concatenate(cls, parts: Sequence[Shard]) -> Shard:
        return cls(
            np.concatenate([p.ids for p in parts]),
            np.concatenate([p.images for p in parts]),
            np.concatenate([p.labels for p in parts]),
        )


def rows_a_shard(shape: Sequence[int]) -> int:
    """Images of this shape in a shard, unless told otherwise: at most 64 MiB, at most 262,144."""
    return max(1, min(SHARD_ROWS, SHARD_BYTES // int(np.prod(shape))))


def image_hash(images: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """A 64-bit hash of each image's bytes: (n, H, W, C) -> (n,) uint64, equal for identical images.

    Words of 8 bytes, each mixed with its position by SplitMix64's finaliser (Steele, Lea and Flood 2014),
    are added and mixed again. Not for use against an adversary.
    """
    size = int(np.prod(images.shape[1:]))
    num_words = -(-size // 8)
    flat = np.ascontiguousarray(images).reshape(len(images), size)
    keys = mix64(np.arange(1, num_words + 1, dtype=np.uint64) * np.uint64(GOLDEN))
    out = np.empty(len(images), np.uint64)
    block = max(1, (1 << 17) // num_words)  # words and temporaries stay in the cache
    for start in range(0, len(images), block):
        rows = flat[start : start + block]
        if size % 8:
            padded = np.zeros((len(rows), num_words * 8), np.uint8)
            padded[:, :size] = rows
            rows = padded
        out[start : start + block] = mix64(rows.view("<u8") + keys).sum(axis=1, dtype=np.uint64)
    return mix64(out)


def encode_shard(shard: Shard) -> bytes:
    """A Parquet file with columns id int64, image fixed-size binary (NHWC bytes), label int16."""
    size = int(np.prod(shard.images.shape[1:]))
    pixels = pa.py_buffer(np.ascontiguousarray(shard.images))
    table = pa.table(
        {
            "id": _column(shard.ids, np.int64),
            "image": pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(size), len(shard.ids), [None, pixels]
            ),
            "label": _column(shard.labels, np.int16),
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        compression="zstd",
        compression_level=1,
        use_dictionary=False,
        write_statistics=False,
        column_encoding={"id": "DELTA_BINARY_PACKED", "image": "PLAIN", "label": "PLAIN"},
    )
    return sink.getvalue().to_pybytes()


def decode_shard(data: Any, shape: Sequence[int]) -> Shard:
    """The rows of a file's bytes (a buffer) whose images have `shape` (H, W, C); raises `UNREADABLE`."""
    size = int(np.prod(shape))
    table = _table(pa.BufferReader(data), ["id", "image", "label"])
    pixels = _buffer(table["image"], pa.binary(size), size)
    images = np.frombuffer(pixels, np.uint8).reshape(-1, *shape)
    return Shard(_numbers(table["id"], np.int64), images, _numbers(table["label"], np.int64))


def decode_ids(file: Any) -> tuple[NDArray[np.int64], NDArray[np.int16]]:
    """Ids and labels of an open file, without its images; raises `UNREADABLE`."""
    table = _table(file, ["id", "label"])
    return _numbers(table["id"], np.int64), _numbers(table["label"], np.int16)


def _column(values: NDArray[np.int64], kind: type[np.integer]) -> Any:
    """An Arrow array from its buffer: `pa.array` would import pandas, a second of every process."""
    buffer = pa.py_buffer(np.ascontiguousarray(values, kind))
    return pa.Array.from_buffers(pa.from_numpy_dtype(kind), len(values), [None, buffer])


def _table(file: Any, columns: list[str]) -> Any:
    """Columns of a Parquet file; not by `pq.read_table`, which would import pandas too."""
    return pq.ParquetFile(file).read(columns, use_threads=False)


def _numbers(column: Any, kind: type[T]) -> NDArray[T]:
    """The values of an integer column; nor by `to_numpy`, for the same reason."""
    dtype = np.dtype(kind)
    return np.frombuffer(_buffer(column, pa.from_numpy_dtype(dtype), dtype.itemsize), dtype)


def _buffer(column: Any, kind: Any, width: int) -> memoryview:
    """The bytes of a column whose values have `width` bytes; ArrowException if it is of another type."""
    array = column.combine_chunks().cast(kind)
    if array.null_count:
        raise pa.ArrowInvalid("a value is missing")
    start = array.offset * width
    if not len(array):
        return memoryview(b"")
    return memoryview(array.buffers()[1])[start : start + len(array) * width]


def shard_entry(index: int, ids: NDArray[np.int64], data: bytes) -> ShardEntry:
    """The manifest entry of shard `index`, which holds `data`; ValueError if its ids do not ascend."""
    if not (np.diff(ids) > 0).all():
        raise ValueError("the ids of a shard must ascend")
    return {
        "file": f"shard-{index:05d}.parquet",
        "rows": len(ids),
        "first_id": int(ids[0]),
        "last_id": int(ids[-1]),
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def write_shard(folder: Folder | Place, index: int, shard: Shard) -> ShardEntry:
    """Write shard `index` so that it is there whole or not at all; returns its manifest entry.

    Raises:
        ValueError: ids do not ascend.
        OSError: the disk is full, for example; nothing of the shard is left.
    """
    data = encode_shard(shard)
    entry = shard_entry(index, shard.ids, data)
    (folder if isinstance(folder, Folder) else Folder(folder)).write(entry["file"], data)
    return entry


def write_shards(folder: Folder | Place, shards: Iterable[Shard], rows: int) -> list[ShardEntry]:
    """Write a stream of rows whose ids ascend as shards of `rows`, each as soon as it is full."""
    return [write_shard(folder, i, shard) for i, shard in enumerate(recut(shards, rows))]


def recut(shards: Iterable[Shard], rows: int) -> Iterator[Shard]:
    """The same rows in shards of `rows`, the last one shorter.

    Rows are copied into place as they come, and nothing refers to a shard that was given away: a shard is
    in memory once.
    """
    filling: list[Shard] = []
    used = 0
    for shard in shards:
        while len(shard.ids):
            if not filling:
                filling, used = [_empty_shard(rows, shard.images.shape[1:])], 0
            piece = shard[: rows - used]
            shard = shard[len(piece.ids) :]
            place = slice(used, used + len(piece.ids))
            filling[0].ids[place] = piece.ids
            filling[0].images[place] = piece.images
            filling[0].labels[place] = piece.labels
            used += len(piece.ids)
            if used == rows:
                yield filling.pop()
    if filling:
        yield filling.pop()[:used]


def _empty_shard(rows: int, shape: tuple[int, ...]) -> Shard:
    images = np.empty((rows, *shape), np.uint8)
    return Shard(np.empty(rows, np.int64), images, np.empty(rows, np.int64))
