"""The pool: Parquet shards of uint8 images with stable ids, and `pool.json` that describes them."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ssat_ray.errors import UserError
from ssat_ray.store import write_atomic

MANIFEST = "pool.json"


@dataclass(frozen=True)
class Shard:
    """One shard in memory: ids (n,) int64, images (n, H, W, C) uint8, labels (n,) int64, -1 = none."""

    ids: NDArray[np.int64]
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


def image_hash(images: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """First 8 bytes of BLAKE2b over each image's bytes: (n,) uint64, equal for identical images."""
    digests = b"".join(hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in images)
    return np.frombuffer(digests, dtype="<u8")


def encode_shard(shard: Shard) -> bytes:
    """A Parquet file with columns id int64, image fixed-size binary (NHWC bytes), label int16."""
    size = int(np.prod(shard.images.shape[1:]))
    pixels = pa.py_buffer(np.ascontiguousarray(shard.images))
    table = pa.table(
        {
            "id": pa.array(shard.ids, pa.int64()),
            "image": pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(size), len(shard.ids), [None, pixels]
            ),
            "label": pa.array(shard.labels.astype(np.int16), pa.int16()),
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", compression_level=1)
    return sink.getvalue()


def write_shard(folder: Path, index: int, shard: Shard) -> dict[str, Any]:
    """Write shard `index` atomically; returns its manifest entry."""
    name, data = f"shard-{index:05d}.parquet", encode_shard(shard)
    write_atomic(folder / name, data)
    return {
        "file": name,
        "rows": len(shard.ids),
        "first_id": int(shard.ids[0]),
        "last_id": int(shard.ids[-1]),
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def manifest(
    shards: list[dict[str, Any]], image_shape: tuple[int, int, int], num_classes: int
) -> str:
    """The text of `pool.json`. image_shape is (C, H, W)."""
    channels, height, width = image_shape
    return json.dumps(
        {
            "format": 1,
            "shape": [height, width, channels],
            "num_classes": num_classes,
            "rows": sum(s["rows"] for s in shards),
            "shards": shards,
        },
        indent=1,
    )


class Pool:
    """A pool on disk. A selection and a generated set are pools too."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
        except FileNotFoundError as error:
            raise UserError(f"{folder} is no pool: it has no {MANIFEST}.") from error
        except json.JSONDecodeError as error:
            raise UserError(f"{folder / MANIFEST} is damaged: {error}.") from error

    def __len__(self) -> int:
        return int(self.manifest["rows"])

    @property
    def shards(self) -> list[dict[str, Any]]:
        shards: list[dict[str, Any]] = self.manifest["shards"]
        return shards

    @property
    def num_bytes(self) -> int:
        return sum(s["bytes"] for s in self.shards)

    def read(self, index: int) -> Shard:
        """One shard, its row count and checksum checked."""
        entry = self.shards[index]
        path = self.folder / entry["file"]
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise UserError(f"{path} is listed in {MANIFEST} and missing.") from error
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise UserError(
                f"{path} was altered after it was written: its checksum differs from {MANIFEST}."
            )
        table = pq.read_table(io.BytesIO(data))
        height, width, channels = self.manifest["shape"]
        column = table["image"].combine_chunks()
        pixels = np.frombuffer(
            column.buffers()[1], np.uint8, offset=column.offset * column.type.byte_width
        )
        images = pixels[: len(column) * column.type.byte_width].reshape(-1, height, width, channels)
        if len(images) != entry["rows"]:
            raise UserError(f"{path} has {len(images)} rows, {MANIFEST} says {entry['rows']}.")
        return Shard(table["id"].to_numpy(), images, table["label"].to_numpy().astype(np.int64))

    def __iter__(self) -> Iterator[Shard]:
        return (self.read(i) for i in range(len(self.shards)))

    def load(self) -> Shard:
        """The whole pool in memory, in shard order (small pools only)."""
        parts = list(self)
        return Shard(
            np.concatenate([p.ids for p in parts]),
            np.concatenate([p.images for p in parts]),
            np.concatenate([p.labels for p in parts]),
        )
