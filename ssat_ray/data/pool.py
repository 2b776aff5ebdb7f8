"""The pool: Parquet shards of uint8 images with stable ids, and `pool.json` that describes them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ssat_ray.data.folder import Folder
from ssat_ray.data.mix64 import GOLDEN, mix64
from ssat_ray.errors import UserError
from ssat_ray.store import canonical_json

MANIFEST = "pool.json"
FORMAT = 2
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


def write_shard(folder: Folder | os.PathLike[str], index: int, shard: Shard) -> ShardEntry:
    """Write shard `index` so that it is there whole or not at all; returns its manifest entry.

    Raises:
        ValueError: ids do not ascend.
        OSError: the disk is full, for example; nothing of the shard is left.
    """
    data = encode_shard(shard)
    entry = shard_entry(index, shard.ids, data)
    (folder if isinstance(folder, Folder) else Folder(folder)).write(entry["file"], data)
    return entry


def write_shards(
    folder: Folder | os.PathLike[str], shards: Iterable[Shard], rows: int
) -> list[ShardEntry]:
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


def manifest(
    generations: Sequence[Sequence[ShardEntry]],
    image_shape: tuple[int, int, int],
    num_classes: int,
    **more: Any,
) -> str:
    """The text of `pool.json`.

    Args:
        generations: shards of the pool as it was first made, then of each append.
        image_shape: (C, H, W).
        more: further fields, for example `location` of the shards if it is not the manifest's folder.
    """
    channels, height, width = image_shape
    shape = [height, width, channels]
    content = {
        "format": FORMAT,
        "shape": shape,
        "num_classes": num_classes,
        "rows": sum(s["rows"] for shards in generations for s in shards),
        "generations": [
            {
                "rows": sum(s["rows"] for s in shards),
                "shards": len(shards),
                "digest": generation_digest(shards, shape, num_classes),
            }
            for shards in generations
        ],
        **more,
        "shards": [entry for shards in generations for entry in shards],
    }
    return json.dumps(content, indent=1)


def generation_digest(shards: Sequence[ShardEntry], shape: list[int], num_classes: int) -> str:
    """20 hex digits over the contents of some shards: their rows, ids and checksums, not their place."""
    content = [[s["rows"], s["first_id"], s["last_id"], s["sha256"]] for s in shards]
    key = canonical_json([shape, num_classes, content])
    return hashlib.sha256(key.encode()).hexdigest()[:20]


class Pool:
    """A pool at any location. A selection and a generated set are pools too.

    Ids ascend over the shards in their order, so a row's position stands for its id.
    """

    def __init__(self, location: Folder | str | os.PathLike[str]) -> None:
        self.folder = location if isinstance(location, Folder) else Folder(location)
        where = self.folder.path(MANIFEST)
        try:
            self.manifest: dict[str, Any] = json.loads(self.folder.read(MANIFEST).to_pybytes())
        except FileNotFoundError as error:
            raise UserError(f"{self.folder} is no pool: it has no {MANIFEST}.") from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{where} is damaged: {error}.") from error
        if self.manifest.get("format") != FORMAT:
            raise UserError(
                f"{where} has format {self.manifest.get('format')}, this release reads {FORMAT}."
            )
        self.shards_in = Folder(self.manifest["location"]) if self.is_reference else self.folder
        last = -1
        for entry in self.shards:
            if not last < entry["first_id"] <= entry["last_id"]:
                raise UserError(f"{where}: ids of {entry['file']} do not follow those before it.")
            last = entry["last_id"]

    @property
    def is_reference(self) -> bool:
        """Whether the shards lie elsewhere than the manifest."""
        return "location" in self.manifest

    def __len__(self) -> int:
        return int(self.manifest["rows"])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C)"""
        height, width, channels = self.manifest["shape"]
        return height, width, channels

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        height, width, channels = self.manifest["shape"]
        return channels, height, width

    @property
    def num_classes(self) -> int:
        return int(self.manifest["num_classes"])

    @property
    def shards(self) -> list[ShardEntry]:
        shards: list[ShardEntry] = self.manifest["shards"]
        return shards

    @property
    def generations(self) -> list[list[ShardEntry]]:
        """Shards by generation: the pool as it was first made, then each append."""
        found, start = [], 0
        for generation in self.manifest["generations"]:
            found.append(self.shards[start : start + generation["shards"]])
            start += generation["shards"]
        return found

    @property
    def num_bytes(self) -> int:
        return sum(s["bytes"] for s in self.shards)

    def shard_path(self, index: int) -> str:
        return self.shards_in.path(self.shards[index]["file"])

    def read(self, index: int) -> Shard:
        """One shard, its checksum, row count and ids checked.

        Raises:
            UserError: it is missing, was altered, or is not what the manifest says.
            OSError: it could not be read; trying again may help.
        """
        entry, path = self.shards[index], self.shard_path(index)
        try:
            data = self.shards_in.read(entry["file"])
        except FileNotFoundError as error:
            raise UserError(f"{path} is listed in {MANIFEST} and missing.") from error
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise UserError(
                f"{path} was altered after it was written: its checksum differs from {MANIFEST}."
            )
        size = int(np.prod(self.shape))
        try:
            table = _table(pa.BufferReader(data), ["id", "image", "label"])
            pixels = _buffer(table["image"], pa.binary(size), size)
            ids, labels = _numbers(table["id"], np.int64), _numbers(table["label"], np.int64)
        except UNREADABLE as error:
            raise UserError(
                f"{path} is no shard of images of shape {self.shape}: {error}."
            ) from error
        images = np.frombuffer(pixels, np.uint8).reshape(-1, *self.shape)
        return Shard(self._checked_ids(ids, entry, path), images, labels)

    def read_ids(self, index: int) -> tuple[NDArray[np.int64], NDArray[np.int16]]:
        """Ids and labels of one shard, without its images and its checksum.

        Raises:
            UserError: it is missing, cannot be read, or is not what the manifest says.
        """
        entry, path = self.shards[index], self.shard_path(index)
        try:
            with self.shards_in.open(entry["file"]) as file:
                table = _table(file, ["id", "label"])
            ids, labels = _numbers(table["id"], np.int64), _numbers(table["label"], np.int16)
        except FileNotFoundError as error:
            raise UserError(f"{path} is listed in {MANIFEST} and missing.") from error
        except UNREADABLE as error:
            raise UserError(f"{path} is damaged, or cannot be read: {error}.") from error
        return self._checked_ids(ids, entry, path), labels

    @staticmethod
    def _checked_ids(ids: NDArray[np.int64], entry: ShardEntry, path: str) -> NDArray[np.int64]:
        if len(ids) != entry["rows"]:
            raise UserError(f"{path} has {len(ids)} rows, {MANIFEST} says {entry['rows']}.")
        if (ids[0], ids[-1]) != (entry["first_id"], entry["last_id"]):
            raise UserError(f"{path} has other ids than {MANIFEST} says.")
        return ids

    def __iter__(self) -> Iterator[Shard]:
        return (self.read(i) for i in range(len(self.shards)))

    def load(self) -> Shard:
        """The whole pool in memory (small pools only)."""
        return Shard.concatenate(list(self))
