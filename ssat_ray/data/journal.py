"""The journal of an unfinished pool: what is being imported and which shards are written already."""

from __future__ import annotations

import json
import time
from typing import Any, TypedDict

from ssat_ray.data import schema
from ssat_ray.data.fingerprints import by_source
from ssat_ray.data.folder import Folder
from ssat_ray.data.pool import MANIFEST
from ssat_ray.data.shard import ShardEntry
from ssat_ray.errors import UserError


class Note(TypedDict):
    """A shard that is written: its entry in `pool.json`, its generation, its labels in short."""

    entry: ShardEntry
    generation: int
    max_label: int
    """-1: none."""
    unlabelled: int
    """Rows without a label."""


def difference(now: dict[str, Any], before: dict[str, Any]) -> str:
    """The keys in which two option trees differ, for messages."""
    keys = [key for key in now if now[key] != before.get(key)]
    return ", ".join(f"{key} {before.get(key)} (now {now[key]})" for key in keys)


def _settings(job: dict[str, Any]) -> dict[str, Any]:
    """All of a job but its files, in one level."""
    rest = {key: value for key, value in job.items() if key not in ("files", "options")}
    return {**job.get("options", {}), **rest}


def clear_scratch(folder: Folder) -> None:
    """Remove half-written files of a killed or failed process."""
    for name in folder.names(".tmp"):
        if name.startswith("."):
            folder.delete(name)


def read_journal(folder: Folder, name: str) -> dict[str, Any]:
    """`job`, `starts` and `notes` of a journal file; UserError if it is damaged."""
    try:
        content: dict[str, Any] = json.loads(folder.read(name).to_pybytes())
        schema.check(schema.Journal, content)
    except (ValueError, RecursionError) as error:
        where = folder.path(name)
        raise UserError(f"{where} is damaged ({error}); --restart begins anew.") from error
    return content


class Journal:
    """A small JSON file in the target, there from before the first shard until after `pool.json`.

    Attributes:
        notes: of the shards written so far.
        starts: the first row of each source file, as far as known.
    """

    def __init__(self, folder: Folder, name: str, job: dict[str, Any]) -> None:
        self.folder, self.name, self.job = folder, name, job
        self.notes: list[Note] = []
        self._forgotten: list[Note] = []
        self.starts = [0]
        self._saved_at, self._cost = 0.0, 0.0

    @classmethod
    def resume(cls, folder: Folder, name: str, job: dict[str, Any], restart: bool) -> Journal:
        """The journal in the folder if it is of the same job, else a new one.

        Shards that came from files which changed since are dropped from it; those of a changed labels file
        are all that came with it.

        Raises:
            UserError: the folder holds the journal of another job, or it is damaged.
        """
        journal = cls(folder, name, job)
        clear_scratch(folder)
        if restart or not folder.exists(name):
            return journal
        content = read_journal(folder, name)
        found, journal.notes, starts = content["job"], content["notes"], content["starts"]
        old_files, files = found.get("files", []), job.get("files", [])
        changed = difference(_settings(job), _settings(found))
        if [f["name"] for f in old_files] != [f["name"] for f in files]:
            changed = f"files {', '.join(f['name'] for f in old_files)}"
        if changed:
            raise UserError(
                f"{folder.path(name)} is of an unfinished command with {changed}. Run that one again, choose another "
                "folder, or give --restart to discard its shards."
            )
        journal.starts = starts
        sources = [by_source(records, job["options"]) for records in (old_files, files)]
        for i, (old, new) in enumerate(zip(*sources, strict=True)):
            if old != new:
                if i < len(starts):
                    journal.keep(starts[i])
                journal.starts = starts[: i + 1]
                break
        return journal

    @property
    def entries(self) -> list[ShardEntry]:
        return [note["entry"] for note in self.notes]

    @property
    def num_rows(self) -> int:
        return sum(entry["rows"] for entry in self.entries)

    def keep(self, rows: int) -> None:
        """Forget the shards that hold any row from `rows` on."""
        while self.num_rows > rows:
            self._forgotten.append(self.notes.pop())

    def save(self) -> None:
        begin = time.monotonic()
        content = {"job": self.job, "starts": self.starts, "notes": self.notes}
        self.folder.write(self.name, json.dumps(content))
        self._saved_at = time.monotonic()
        self._cost = self._saved_at - begin

    def add(self, note: Note) -> None:
        """Note a shard. Saving takes a tenth of the time at most: its cost grows with the shards.

        A shard that a kill leaves out of the journal is written again with the same bytes.
        """
        self.notes.append(note)
        if time.monotonic() - self._saved_at > 10 * self._cost:
            self.save()

    def remove(self) -> None:
        self.folder.delete(self.name)

    def leave(self) -> None:
        """Save what is known of an unfinished command; if that is no shard, leave nothing at all."""
        if not self.notes:
            for note in self._forgotten:
                self.folder.delete(note["entry"]["file"])
            if self.folder.exists(MANIFEST) or not any(self.folder.names(".parquet")):
                self.remove()
                return
        self.save()
