"""The journal of an unfinished pool: what is being imported and which shards are written already."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from ssat_ray.data.folder import Folder, file_digest
from ssat_ray.data.shard import ShardEntry
from ssat_ray.errors import UserError

END_BYTES, SAMPLE_BYTES, NUM_SAMPLES = 2**20, 2**14, 62
FileRecord = dict[str, Any]


class Note(TypedDict):
    """A shard that is written: its entry in `pool.json`, its generation, its largest label (-1: none)."""

    entry: ShardEntry
    generation: int
    max_label: int


def fingerprint(paths: Sequence[Path]) -> list[FileRecord]:
    """What tells these files from others without reading all of them: one record a file or folder.

    `name`, `bytes`, `mtime_ns`, and `sample`: 20 hex digits of SHA-256 over the first and last MiB and 62
    pieces of 16 KiB between; for a folder over the names, sizes and times of its files.
    """
    return [_folder_record(path) if path.is_dir() else _file_record(path) for path in paths]


def _file_record(path: Path) -> FileRecord:
    try:
        about = path.stat()
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            digest.update(file.read(END_BYTES))
            middle = about.st_size - 2 * END_BYTES
            for i in range(NUM_SAMPLES if middle > 0 else 0):
                file.seek(END_BYTES + middle * i // NUM_SAMPLES)
                digest.update(file.read(SAMPLE_BYTES))
            file.seek(max(0, about.st_size - END_BYTES))
            digest.update(file.read(END_BYTES))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    return {
        "name": path.name,
        "bytes": about.st_size,
        "mtime_ns": about.st_mtime_ns,
        "sample": digest.hexdigest()[:20],
    }


def _folder_record(root: Path) -> FileRecord:
    digest, size = hashlib.sha256(), 0
    for folder, subfolders, names in os.walk(root):
        subfolders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)
            try:
                about = os.stat(path)
            except OSError as error:
                raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
            place = os.path.relpath(path, root)
            digest.update(json.dumps([place, about.st_size, about.st_mtime_ns]).encode())
            size += about.st_size
    return {"name": root.name, "bytes": size, "mtime_ns": 0, "sample": digest.hexdigest()[:20]}


def with_hashes(paths: Sequence[Path], files: Sequence[FileRecord]) -> list[FileRecord]:
    """The records with the SHA-256 of each whole file, for `pool.json`; folders have none.

    Raises:
        UserError: a file is not as its record says: it changed while it was imported.
    """
    found = []
    for path, record, now in zip(paths, files, fingerprint(paths), strict=True):
        if now != record:
            raise UserError(
                f"{path} changed while it was imported. Run the same command again: it reads the file anew."
            )
        found.append(record if path.is_dir() else {**record, "sha256": file_digest(path)})
    return found


def same_content(
    known: Sequence[FileRecord], paths: Sequence[Path], files: Sequence[FileRecord]
) -> bool:
    """Whether the files at `paths`, with fingerprints `files`, have the recorded contents, whatever their names.

    A file whose time is not the recorded one is compared by its hash, which reads all of it.
    """
    content = [[(f["bytes"], f["sample"]) for f in records] for records in (known, files)]
    return content[0] == content[1] and all(
        "sha256" not in old
        or old["mtime_ns"] == new["mtime_ns"]
        or old["sha256"] == file_digest(path)
        for old, path, new in zip(known, paths, files, strict=True)
    )


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


class Journal:
    """A small JSON file in the target, there from before the first shard until after `pool.json`.

    Attributes:
        notes: of the shards written so far.
        starts: the first row of each source file, as far as known.
    """

    def __init__(self, folder: Folder, name: str, job: dict[str, Any]) -> None:
        self.folder, self.name, self.job = folder, name, job
        self.notes: list[Note] = []
        self.starts = [0]
        self._saved_at, self._cost = 0.0, 0.0

    @classmethod
    def resume(cls, folder: Folder, name: str, job: dict[str, Any], restart: bool) -> Journal:
        """The journal in the folder if it is of the same job, else a new one.

        Shards that came from files which changed since are dropped from it.

        Raises:
            UserError: the folder holds the journal of another job, or shards of unknown origin.
        """
        journal, where = cls(folder, name, job), folder.path(name)
        clear_scratch(folder)
        if restart or not folder.exists(name):
            return journal
        try:
            content = json.loads(folder.read(name).to_pybytes())
            found, journal.notes, starts = content["job"], content["notes"], content["starts"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{where} is damaged; --restart begins anew.") from error
        old_files, files = found.get("files", []), job.get("files", [])
        changed = difference(_settings(job), _settings(found))
        if [f["name"] for f in old_files] != [f["name"] for f in files]:
            changed = f"files {', '.join(f['name'] for f in old_files)}"
        if changed:
            raise UserError(
                f"{where} is of an unfinished command with {changed}. Run that one again, choose another "
                "folder, or give --restart to discard its shards."
            )
        journal.starts = starts
        for i, (old, new) in enumerate(zip(old_files, files, strict=True)):
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
            self.notes.pop()

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
