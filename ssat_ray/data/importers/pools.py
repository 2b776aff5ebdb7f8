"""Pools as sources: their images and labels, which get new ids in the pool that takes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ssat_ray.data.importers.base import Block, ImportOptions, Source
from ssat_ray.data.pool import Pool
from ssat_ray.errors import cannot_be_read


def open_file(path: Path, options: ImportOptions) -> Source:
    """The rows of the pool in a folder, in the order of their ids.

    Raises:
        UserError: it is no pool, or lacks a shard.
    """
    return PoolRows(path)


class PoolRows(Source):
    """A block is a shard, whose checksum is checked."""

    read_as, labels_from = "a pool", "the pool's labels"

    def __init__(self, path: Path) -> None:
        self._pool = Pool(path)
        self._pool.check_present()
        self.name, self.shape, self.rows = str(path), self._pool.shape, len(self._pool)
        self.class_names = self._pool.class_names

    def blocks(self, start: int = 0) -> Iterator[Block]:
        row = 0
        for index, entry in enumerate(self._pool.shards):
            row += entry["rows"]
            if row > start:
                try:
                    shard = self._pool.read(index)
                except OSError as error:
                    raise cannot_be_read(self._pool.shard_path(index), error) from error
                shard = shard[max(0, len(shard.ids) - (row - start)) :]
                yield Block(shard.images, shard.labels)
