"""Whether a pool was made of given files already: for an import done twice, and file by file for an append."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssat_ray.data.fingerprints import FileRecord, by_source, same_content
from ssat_ray.data.journal import difference
from ssat_ray.data.pool import Pool
from ssat_ray.errors import UserError


def check_same_import(
    pool: Pool, paths: list[Path], files: list[FileRecord], job: dict[str, Any]
) -> None:
    """UserError if a pool was imported from other files, or with other options."""
    known = (pool.manifest.get("source") or [None])[0]
    if known is None or not (
        len(known["files"]) == len(files) and all(map(same_content, known["files"], paths, files))
    ):
        names = [] if known is None else [f["name"] for f in known["files"]]
        same_names = names == [f["name"] for f in files]
        held = ", ".join(names) + (" with other contents" if same_names else "")
        raise UserError(
            f"{pool.folder} is a pool already, made of {held or 'other files'}. `ssat pool append` adds to it; "
            "a pool of its own needs another folder."
        )
    changed = difference(job["options"], known["options"])
    if changed:
        raise UserError(
            f"{pool.folder} was imported from these files with {changed}. Choose another folder, or remove "
            "it; `ssat pool copy` changes shard_rows."
        )


def holds(
    pool: Pool, paths: Sequence[Path], files: Sequence[FileRecord], options: dict[str, Any]
) -> bool:
    """Whether the pool holds these files already.

    Raises:
        UserError: it holds some of them and not others, or holds them with other options or labels.
    """
    sources = zip(by_source(paths, options), by_source(files, options), strict=True)
    found = {str(source[0]): _held(pool, source, records, options) for source, records in sources}
    held = [name for name, how in found.items() if how is not None]
    new = [name for name, how in found.items() if how is None]
    if held and new:
        raise UserError(
            f"{pool.folder} holds {', '.join(held)} already, but not {', '.join(new)}. Append only those that "
            "are new; or --again adds all of them, the others a second time."
        )
    changed = ", ".join(dict.fromkeys(how for how in found.values() if how))
    if changed:
        raise UserError(
            f"{pool.folder} holds {', '.join(held)} already, with {changed}. --again adds the images once more."
        )
    return bool(held)


def _held(
    pool: Pool, paths: Sequence[Path], records: Sequence[FileRecord], options: dict[str, Any]
) -> str | None:
    """What is different about an image file in the pool, "" if nothing; None if it is not there.

    How the shards were cut, and what the classes were said to be, makes no other images.
    """
    no_matter = ("num_classes", "classes", "shard_rows", "labels")
    given = {key: value for key, value in options.items() if key not in no_matter}
    how = None
    for origin in filter(None, pool.manifest.get("source") or []):
        for known in by_source(origin["files"], origin["options"]):
            if same_content(known[0], paths[0], records[0]):
                how = difference(given, origin["options"])
                if len(known) != len(records) or not all(map(same_content, known, paths, records)):
                    how = ", ".join(["other labels", how] if how else ["other labels"])
                if not how:
                    return how
    return how
