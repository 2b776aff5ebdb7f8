"""Writes shards of a pool as their rows come, keeping a journal, so that it can go on after a kill."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssat_ray.data.folder import Folder
from ssat_ray.data.importers.base import DamagedFile, Joined
from ssat_ray.data.journal import Journal, Note, clear_scratch
from ssat_ray.data.pool import MANIFEST, Pool
from ssat_ray.data.prefetch import prefetch
from ssat_ray.data.shard import Shard, ShardEntry, encode_shard, recut, shard_entry
from ssat_ray.errors import UserError, cannot_be_read

Report = Callable[[int, int | None, int], None]
"""Called with rows so far, rows in all (None if unknown) and bytes an image."""


def quiet(rows: int, total: int | None, row_bytes: int) -> None:
    """Report to nobody."""


class PoolWriter:
    """Shards of one command on their way into a folder, with their journal.

    Reading, encoding and writing overlap: a thread for each of the first two.

    Args:
        journal: its file name.
        job: what a journal found in the folder must agree with (`Journal.resume`).
        num_before: shards that the folder's pool has already.
    """

    def __init__(
        self,
        folder: Folder,
        journal: str,
        job: dict[str, Any],
        restart: bool,
        num_before: int,
        shard_rows: int,
    ) -> None:
        self.folder, self.shard_rows, self._num_before = folder, shard_rows, num_before
        self.journal = Journal.resume(folder, journal, job, restart)
        with self._writes(f"the journal {journal}"):
            self.journal.save()

    def generations(self, count: int) -> list[list[ShardEntry]]:
        """Entries of the shards written, by generation."""
        notes = self.journal.notes
        return [[n["entry"] for n in notes if n["generation"] == g] for g in range(count)]

    @property
    def unlabelled(self) -> int:
        """Rows without a label in the shards written."""
        return sum(note.get("unlabelled", 0) for note in self.journal.notes)

    def take_source(
        self, source: Joined, first_id: int, num_classes: int | None, report: Report
    ) -> int:
        """Write the rows that are missing; returns the largest label, -1 if there is none."""
        start = self.journal.num_rows
        if len(self.journal.starts) > len(source.starts):
            source.starts = self.journal.starts
        self.journal.starts = source.starts
        row_bytes = int(np.prod(source.shape))

        def shards() -> Iterator[Shard]:
            row = start
            for block in source.blocks(row):
                _check_classes(block.labels, row, num_classes, source)
                ids = np.arange(first_id + row, first_id + row + len(block.labels))
                row += len(ids)
                report(row, source.rows, row_bytes)
                yield Shard(ids, block.images, block.labels)

        try:
            self._write(shards(), 0, lambda entry: source.where(entry["first_id"] - first_id))
        except DamagedFile as error:
            self.journal.keep(error.first_row)
            raise
        finally:
            self._leave()
        if not self.journal.notes:
            raise UserError(f"{source.name} has no images.")
        return max(int(note["max_label"]) for note in self.journal.notes)

    def take_generation(
        self, pool: Pool, number: int, entries: Sequence[ShardEntry], report: Report
    ) -> None:
        """Write what is missing of a generation of another pool; UserError if it cannot be read."""
        notes = self.journal.notes
        last_id = notes[-1]["entry"]["last_id"] if notes else -1
        first = pool.shards.index(entries[0])

        def shards() -> Iterator[Shard]:
            row = self.journal.num_rows
            for index, entry in enumerate(entries, first):
                if entry["last_id"] > last_id:
                    try:
                        shard = pool.read(index)
                    except OSError as error:
                        raise cannot_be_read(pool.shard_path(index), error) from error
                    shard = shard[shard.ids > last_id]
                    row += len(shard.ids)
                    report(row, len(pool), int(np.prod(pool.shape)))
                    yield shard

        try:
            self._write(shards(), number, lambda entry: f"id {entry['first_id']}")
        finally:
            self._leave()

    def finish(self, text: str) -> Pool:
        """Write `pool.json`, remove the journal."""
        with self._writes(MANIFEST):
            self.folder.write(MANIFEST, text)
        self.journal.remove()
        return Pool(self.folder)

    def _write(
        self,
        shards: Iterator[Shard],
        generation: int,
        where: Callable[[ShardEntry], str],
    ) -> None:
        """Cut into shards, write each, note it."""
        first = self._num_before + len(self.journal.notes)
        with (
            contextlib.closing(prefetch(recut(shards, self.shard_rows), 1)) as whole,
            contextlib.closing(prefetch(_encoded(whole), 1)) as ready,
        ):
            for index, (ids, labels, data) in enumerate(ready, first):
                entry = shard_entry(index, ids, data)
                with self._writes(f"{entry['file']}, which begins with {where(entry)},"):
                    self.folder.write(entry["file"], data)
                    self.journal.add(
                        Note(
                            entry=entry,
                            generation=generation,
                            max_label=int(labels.max()),
                            unlabelled=int((labels < 0).sum()),
                        )
                    )

    def _leave(self) -> None:
        """Keep what is known, also after an error; a journal that cannot be saved is only older."""
        with contextlib.suppress(OSError, UserError):  # UserError: the disk is full
            clear_scratch(self.folder)
            self.journal.leave()

    @contextlib.contextmanager
    def _writes(self, what: str) -> Iterator[None]:
        try:
            yield
        except (OSError, UserError) as error:  # UserError: the disk is full
            reason = getattr(error, "strerror", None) or str(error).rstrip(".")
            raise UserError(
                f"{self.folder}: {what} could not be written: {reason}. Shards written so "
                "far are kept; make room (or permit writing) and run the same command again."
            ) from error


def _encoded(
    shards: Iterator[Shard],
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], bytes]]:
    """Ids, labels and file of each shard."""
    for shard in shards:
        yield shard.ids, shard.labels, encode_shard(shard)


def _check_classes(
    labels: NDArray[np.int64], first_row: int, num_classes: int | None, source: Joined
) -> None:
    if num_classes is not None and labels.max(initial=-1) >= num_classes:
        row = int((labels >= num_classes).argmax())
        raise UserError(
            f"{source.where(first_row + row)}: label {int(labels[row])} is no class of a pool with "
            f"{num_classes} classes; allowed are 0 to {num_classes - 1}, and -1 for none. The number is given "
            "by --num-classes when a pool is first imported; --classes names them and adds more."
        )
