"""The pool: shards of uint8 images with stable ids at any location, and `pool.json` that describes them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssat_ray.data import schema
from ssat_ray.data.folder import Folder
from ssat_ray.data.shard import UNREADABLE, Shard, ShardEntry, decode_ids, decode_shard
from ssat_ray.errors import UserError, cannot_be_read
from ssat_ray.places import Place
from ssat_ray.store import canonical_json

MANIFEST = "pool.json"
FORMAT = 2


def manifest(
    generations: Sequence[Sequence[ShardEntry]],
    image_shape: tuple[int, int, int],
    num_classes: int,
    classes_then: Sequence[int] = (),
    **more: Any,
) -> str:
    """The text of `pool.json`.

    Args:
        generations: shards of the pool as it was first made, then of each append.
        image_shape: (C, H, W).
        classes_then: number of classes when each generation was made, which its digest keeps; default:
            `num_classes` for all.
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
                "digest": generation_digest(shards, shape, classes),
                **({} if classes == num_classes else {"num_classes": classes}),
            }
            for shards, classes in zip(
                generations, classes_then or [num_classes] * len(generations), strict=True
            )
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

    def __init__(self, location: Folder | str | Place) -> None:
        self.folder = location if isinstance(location, Folder) else Folder(location)
        where = self.folder.path(MANIFEST)
        self.manifest = self._manifest(where)
        self.shards_in = Folder(self.manifest["location"]) if self.is_reference else self.folder
        if sum(about["shards"] for about in self.manifest["generations"]) != len(self.shards):
            raise UserError(f"{where} is damaged: its generations have other shards than it lists.")
        last = -1
        for entry in self.shards:
            if not last < entry["first_id"] <= entry["last_id"]:
                raise UserError(f"{where}: ids of {entry['file']} do not follow those before it.")
            last = entry["last_id"]

    def _manifest(self, where: str) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads(self.folder.read(MANIFEST).to_pybytes())
            if isinstance(content, dict) and content.get("format") != FORMAT:
                raise UserError(
                    f"{where} has format {content.get('format')}, this release reads {FORMAT}."
                )
            schema.check(schema.Manifest, content)
        except FileNotFoundError as error:
            raise UserError(f"{self.folder} is no pool: it has no {MANIFEST}.") from error
        except NotADirectoryError as error:
            raise UserError(f"{self.folder} is no pool: it is no folder.") from error
        except OSError as error:
            raise cannot_be_read(where, error) from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where} is damaged: {error}.") from error
        return content

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
    def class_names(self) -> list[str]:
        """Of the classes 0, 1, …, as many as have one."""
        names: list[str] = self.manifest.get("class_names", [])
        return names

    @property
    def classes_then(self) -> list[int]:
        """The number of classes when each generation was made."""
        return [g.get("num_classes", self.num_classes) for g in self.manifest["generations"]]

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

    def missing(self) -> list[str]:
        """Files of shards that are not there, by one listing of the folder; nothing is read."""
        present = set(self.shards_in.names(".parquet"))
        return [entry["file"] for entry in self.shards if entry["file"] not in present]

    def check_present(self) -> None:
        """UserError if the file of a shard is missing."""
        missing = self.missing()
        if missing:
            listed = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
            raise UserError(
                f"{self.folder} is incomplete: {len(missing)} of its {len(self.shards)} shards are missing "
                f"({listed}). Bring them back; nothing was written."
            )

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
        try:
            shard = decode_shard(data, self.shape)
        except UNREADABLE as error:
            raise UserError(
                f"{path} is no shard of images of shape {self.shape}: {error}."
            ) from error
        self._check_ids(shard.ids, entry, path)
        return shard

    def read_ids(self, index: int) -> tuple[NDArray[np.int64], NDArray[np.int16]]:
        """Ids and labels of one shard, without its images and its checksum.

        Raises:
            UserError: it is missing, cannot be read, or is not what the manifest says.
        """
        entry, path = self.shards[index], self.shard_path(index)
        try:
            with self.shards_in.open(entry["file"]) as file:
                ids, labels = decode_ids(file)
        except FileNotFoundError as error:
            raise UserError(f"{path} is listed in {MANIFEST} and missing.") from error
        except UNREADABLE as error:
            raise UserError(f"{path} is damaged, or cannot be read: {error}.") from error
        self._check_ids(ids, entry, path)
        return ids, labels

    @staticmethod
    def _check_ids(ids: NDArray[np.int64], entry: ShardEntry, path: str) -> None:
        if len(ids) != entry["rows"]:
            raise UserError(f"{path} has {len(ids)} rows, {MANIFEST} says {entry['rows']}.")
        if (ids[0], ids[-1]) != (entry["first_id"], entry["last_id"]):
            raise UserError(f"{path} has other ids than {MANIFEST} says.")

    def __iter__(self) -> Iterator[Shard]:
        return (self.read(i) for i in range(len(self.shards)))

    def first(self, num_images: int) -> Shard:
        """The first `num_images` images, or all; no further shard is read."""
        parts, count = [], 0
        for shard in self:
            parts.append(shard[: num_images - count])
            count += len(parts[-1].ids)
            if count == num_images:
                break
        return Shard.concatenate(parts)

    def load(self) -> Shard:
        """The whole pool in memory (small pools only)."""
        return Shard.concatenate(list(self))
