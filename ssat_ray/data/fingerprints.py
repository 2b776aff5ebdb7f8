"""Which files a pool was made of: fingerprints that recognise them again without reading all of them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ssat_ray.data.folder import file_digest
from ssat_ray.data.listing import scan
from ssat_ray.data.pool import MANIFEST, Pool
from ssat_ray.errors import UserError, cannot_be_read

END_BYTES, SAMPLE_BYTES, NUM_SAMPLES = 2**20, 2**14, 62
FileRecord = dict[str, Any]
T = TypeVar("T")


def fingerprint(paths: Sequence[Path]) -> list[FileRecord]:
    """What tells these files from others without reading all of them: one record a file or folder.

    `name`, `bytes`, `mtime_ns`, and `sample`: 20 hex digits of SHA-256 over the first and last MiB and 62
    pieces of 16 KiB between; for a folder over the names, sizes and times of its files; for a pool over the
    digests of its generations, wherever it lies.
    """
    return [_record(path) for path in paths]


def _record(path: Path) -> FileRecord:
    if is_pool(path):
        return _pool_record(path)
    return _folder_record(path) if os.path.isdir(path) else _file_record(path)


def is_pool(path: Path) -> bool:
    """Whether it is a folder with a `pool.json`."""
    return os.path.isfile(path / MANIFEST)


def refuse_twice(paths: Sequence[Path], records: Sequence[FileRecord]) -> None:
    """UserError if two of these are the same file, or have the same content."""
    before: dict[tuple[int, str], Path] = {}
    for path, record in zip(paths, records, strict=True):
        first = before.get((record["bytes"], record["sample"]))
        if first is None:
            before[record["bytes"], record["sample"]] = path
        elif first.samefile(path):
            raise UserError(f"{path} is given twice; give it once.")
        elif path.is_dir() or file_digest(first) == file_digest(path):
            raise UserError(f"{path} has the same content as {first}; give one of them.")


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
        raise cannot_be_read(path, error) from error
    return {
        "name": path.name,
        "bytes": about.st_size,
        "mtime_ns": about.st_mtime_ns,
        "sample": digest.hexdigest()[:20],
    }


def _pool_record(path: Path) -> FileRecord:
    pool = Pool(path)
    digests = [generation["digest"] for generation in pool.manifest["generations"]]
    sample = hashlib.sha256(json.dumps(digests).encode()).hexdigest()[:20]
    return {"name": path.name, "bytes": pool.num_bytes, "mtime_ns": 0, "sample": sample}


def _folder_record(root: Path) -> FileRecord:
    digest, size = hashlib.sha256(), 0
    for place in _files_below(f"{root}", ""):
        path = f"{root}/{place}"
        try:
            about = os.stat(path)
        except OSError as error:
            raise cannot_be_read(path, error) from error
        digest.update(json.dumps([place, about.st_size, about.st_mtime_ns]).encode())
        size += about.st_size
    return {"name": root.name, "bytes": size, "mtime_ns": 0, "sample": digest.hexdigest()[:20]}


def _files_below(root: str, place: str) -> Iterator[str]:
    """Places in `root` of all files below `place`, those of a folder before those of its subfolders.

    Links to folders are followed in `root` only: there they may be classes.
    """
    files, folders = scan(f"{root}/{place}", lambda name: True, follow_links=not place)
    yield from (f"{place}{name}" for name in files)
    for name in folders:
        yield from _files_below(root, f"{place}{name}/")


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


def same_content(known: FileRecord, path: Path, record: FileRecord) -> bool:
    """Whether the file at `path`, with the fingerprint `record`, has the recorded content, whatever its name.

    If its time is not the recorded one, the hash decides, for which all of it is read.
    """
    return all(known[key] == record[key] for key in ("bytes", "sample")) and (
        "sha256" not in known
        or known["mtime_ns"] == record["mtime_ns"]
        or known["sha256"] == file_digest(path)
    )


def by_source(files: Sequence[T], options: Mapping[str, Any]) -> list[Sequence[T]]:
    """An import's files (or their records) by source: an image file alone, or with its labels file.

    The labels file is the last one if the option `labels` is given, which goes with one image file only.
    """
    return [files] if options.get("labels") else [[file] for file in files]
