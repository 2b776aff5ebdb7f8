"""Writes pools by streaming: import, append and copy, resumable shard by shard; and verify."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ssat_ray.data.claim import claim
from ssat_ray.data.class_names import names_of_append, names_of_import
from ssat_ray.data.fingerprints import (
    FileRecord,
    fingerprint,
    is_pool,
    refuse_twice,
    with_hashes,
)
from ssat_ray.data.folder import Folder
from ssat_ray.data.importers.base import ImportOptions, Source, open_source
from ssat_ray.data.journal import read_journal
from ssat_ray.data.origins import check_same_import, holds
from ssat_ray.data.pool import MANIFEST, Pool, generation_digest, manifest
from ssat_ray.data.pool_writer import PoolWriter, Report, quiet
from ssat_ray.data.shard import SHARD_BYTES, rows_a_shard
from ssat_ray.errors import UserError, cannot_be_read

IMPORT_JOURNAL, APPEND_JOURNAL, COPY_JOURNAL = "import.json", "append.json", "copy.json"


def import_pool(
    paths: Sequence[Path],
    target: str | Folder,
    options: ImportOptions | None = None,
    *,
    shard_rows: int | None = None,
    num_classes: int | None = None,
    classes: Sequence[str] | None = None,
    restart: bool = False,
    report: Report = quiet,
) -> tuple[Pool, bool]:
    """Make a pool of the files' rows, with ids from 0 in their order.

    A killed or failed import goes on at its first missing shard and gives the same bytes as an undisturbed
    one. A finished one is recognised by its files' fingerprints, and no image is read.

    Args:
        shard_rows: images a shard; at most 64 MiB of pixels.
        num_classes: default: the largest label plus one, 0 without labels.
        classes: names of the classes in the order of their numbers; default: the sorted names that the
            files have, if any.
        restart: discard the shards of an unfinished import instead of going on.

    Returns: the pool, and whether anything was written.

    Raises:
        UserError: a file is refused (file and row are named), the target holds another pool or import,
            another process writes into it, or it cannot be written (the disk is full). Finished shards are
            kept.
    """
    folder = target if isinstance(target, Folder) else Folder(target)
    with claim(folder):
        given = {"shard_rows": shard_rows, "num_classes": num_classes, "classes": classes}
        return _import(paths, folder, options or ImportOptions(), given, restart, report)


def _import(
    paths: Sequence[Path],
    folder: Folder,
    options: ImportOptions,
    given: dict[str, Any],
    restart: bool,
    report: Report,
) -> tuple[Pool, bool]:
    for path in filter(is_pool, paths):
        raise UserError(
            f"{path} is a pool already; `ssat pool copy` copies and re-shards it, `ssat pool append` adds it to "
            "another one."
        )
    every, files, job = _job(paths, options, given)
    if folder.exists(MANIFEST):
        pool = Pool(folder)
        check_same_import(pool, every, files, job)
        pool.check_present()
        folder.delete(IMPORT_JOURNAL)
        return pool, False
    refuse_unknown_shards(folder, IMPORT_JOURNAL, restart)
    source = open_source(paths, options)
    names, num_classes = names_of_import(source, given["classes"], given["num_classes"])
    if names:
        job["class_names"] = source.class_names = names
    rows = choose_shard_rows(given["shard_rows"], source.shape)
    writing = PoolWriter(folder, IMPORT_JOURNAL, job, restart, 0, rows)
    largest = writing.take_source(source, 0, num_classes, report)
    found = max(largest + 1, len(names)) if num_classes is None else num_classes
    height, width, channels = source.shape
    more: dict[str, Any] = {"class_names": names} if names else {}
    more["source"] = [_origin(every, files, job, source, writing)]
    text = manifest(writing.generations(1), (channels, height, width), found, **more)
    return writing.finish(text), True


def append_pool(
    paths: Sequence[Path],
    target: str | Folder,
    options: ImportOptions | None = None,
    *,
    shard_rows: int | None = None,
    classes: Sequence[str] | None = None,
    again: bool = False,
    restart: bool = False,
    report: Report = quiet,
) -> tuple[Pool, bool]:
    """Add the files' rows to a pool as a new generation; its files and digests stay as they are.

    Ids go on after the last one. Resumable like `import_pool`; `pool.json` is replaced last. Each file that
    the pool holds already is recognised as `import_pool` does, and not added. The source may be a pool; its
    ids are given anew. Class names of the files get the numbers that the pool's have.

    Args:
        classes: names of the classes in the order of their numbers, for a pool that has none, or to add
            some at the end.
        again: add files that the pool holds already a second time.

    Returns: the pool, and whether anything was written.

    Raises:
        UserError: also if images have another shape than the pool's, a label or class name is not one of its
            classes, one of its shards is missing, or the pool holds some of the files and not others, or holds
            them read with other options.
    """
    folder = Pool(target).folder
    with claim(folder):
        given = {"shard_rows": shard_rows, "num_classes": None, "classes": classes}
        return _append(
            paths, Pool(folder), options or ImportOptions(), given, again, restart, report
        )


def _append(
    paths: Sequence[Path],
    pool: Pool,
    options: ImportOptions,
    given: dict[str, Any],
    again: bool,
    restart: bool,
    report: Report,
) -> tuple[Pool, bool]:
    if pool.is_reference:
        raise UserError(
            f"{pool.folder} refers to shards in {pool.manifest['location']}; append to that pool."
        )
    pool.check_present()
    for path in filter(is_pool, paths):
        if pool.folder.is_local and pool.folder.local_path.samefile(path):
            raise UserError(f"{path} is the pool itself; it cannot be appended to itself.")
    every, files, job = _job(paths, options, given)
    finished = _finish_append(pool, job)
    if finished or (not again and holds(pool, every, files, job["options"])):
        return pool, False
    job["generations"] = [g["digest"] for g in pool.manifest["generations"]]
    source = open_source(paths, options)
    if source.shape != pool.shape:
        raise UserError(
            f"{source.name} has images of shape {source.shape} (H, W, C), the pool {pool.folder} of "
            f"{pool.shape}; a pool has one shape."
        )
    names = names_of_append(source, pool, given["classes"])
    num_classes = max(pool.num_classes, len(names))
    more = {k: v for k, v in pool.manifest.items() if k not in _OWN_KEYS}
    if names:
        more["class_names"] = job["class_names"] = source.class_names = names
    rows = choose_shard_rows(given["shard_rows"], pool.shape)
    writing = PoolWriter(pool.folder, APPEND_JOURNAL, job, restart, len(pool.shards), rows)
    writing.take_source(source, pool.shards[-1]["last_id"] + 1, num_classes, report)
    known = pool.manifest.get("source") or [None] * len(pool.generations)
    more["source"] = [*known, _origin(every, files, job, source, writing)]
    generations = [*pool.generations, *writing.generations(1)]
    then = [*pool.classes_then, num_classes]
    return writing.finish(manifest(generations, pool.image_shape, num_classes, then, **more)), True


_OWN_KEYS = ("format", "shape", "num_classes", "rows", "generations", "shards", "source")


def copy_pool(
    origin: str | Folder,
    target: str | Folder,
    *,
    shard_rows: int | None = None,
    restart: bool = False,
    report: Report = quiet,
) -> tuple[Pool, bool]:
    """Copy a pool to another location, cut into shards of `shard_rows` anew; ids and generations stay.

    Shards are cut at the borders of generations. The same resume and idempotence as `import_pool`.

    Raises:
        UserError: a shard of the origin is missing or altered, or the target is another pool.
    """
    pool, folder = Pool(origin), target if isinstance(target, Folder) else Folder(target)
    with claim(folder):
        return _copy(pool, folder, choose_shard_rows(shard_rows, pool.shape), restart, report)


def _copy(
    pool: Pool, folder: Folder, shard_rows: int, restart: bool, report: Report
) -> tuple[Pool, bool]:
    digests = [g["digest"] for g in pool.manifest["generations"]]
    job = {"options": {"copy of": digests, "shard_rows": shard_rows}}
    if folder.exists(MANIFEST):
        found = Pool(folder)
        if found.manifest.get("copy") != job["options"]:
            raise UserError(f"{folder} holds another pool; choose another folder.")
        found.check_present()
        folder.delete(COPY_JOURNAL)
        return found, False
    refuse_unknown_shards(folder, COPY_JOURNAL, restart)
    writing = PoolWriter(folder, COPY_JOURNAL, job, restart, 0, shard_rows)
    for number, entries in enumerate(pool.generations):
        writing.take_generation(pool, number, entries, report)
    more = {k: v for k, v in pool.manifest.items() if k not in (*_OWN_KEYS, "location", "copy")}
    if "source" in pool.manifest:
        more["source"] = pool.manifest["source"]
    generations = writing.generations(len(digests))
    more["copy"] = job["options"]
    text = manifest(generations, pool.image_shape, pool.num_classes, pool.classes_then, **more)
    return writing.finish(text), True


def verify_pool(pool: Pool, report: Report = quiet) -> list[str]:
    """Read every shard and compare it with `pool.json`: one sentence for each thing that is wrong."""
    problems, rows = [], 0
    for index, entry in enumerate(pool.shards):
        try:
            pool.read(index)
        except UserError as error:
            problems.append(str(error))
        except OSError as error:
            problems.append(str(cannot_be_read(pool.shard_path(index), error)))
        rows += entry["rows"]
        report(rows, len(pool), int(np.prod(pool.shape)))
    if rows != len(pool):
        problems.append(f"{MANIFEST} says {len(pool)} rows, its shards have {rows}.")
    shape = list(pool.shape)
    listed = zip(pool.generations, pool.manifest["generations"], pool.classes_then, strict=True)
    for number, (entries, about, num_classes) in enumerate(listed):
        if generation_digest(entries, shape, num_classes) != about["digest"]:
            problems.append(
                f"generation {number} in {MANIFEST} has another digest than its shards."
            )
    return problems


def _job(
    paths: Sequence[Path], options: ImportOptions, given: dict[str, Any]
) -> tuple[list[Path], list[FileRecord], dict[str, Any]]:
    """All files that are read, their fingerprints, and what a journal must agree with to go on from it."""
    read, every = asdict(options), list(paths)
    if options.labels is not None:
        every.append(Path(options.labels))
        read["labels"] = Path(options.labels).name
    files = fingerprint(every)
    refuse_twice(paths, files[: len(paths)])
    return every, files, json.loads(json.dumps({"files": files, "options": {**read, **given}}))


def _origin(
    paths: list[Path],
    files: list[FileRecord],
    job: dict[str, Any],
    source: Source,
    writing: PoolWriter,
) -> dict[str, Any]:
    """What `pool.json` says of the files that a generation was made of."""
    return {
        "files": with_hashes(paths, files),
        "options": job["options"],
        "read_as": source.read_as,
        "labels_from": source.labels_from,
        "unlabelled": writing.unlabelled,
    }


def refuse_unknown_shards(folder: Folder, journal: str, restart: bool) -> None:
    """UserError if the folder has shards that neither a pool nor a journal accounts for."""
    if not restart and not folder.exists(journal) and any(folder.names(".parquet")):
        raise UserError(
            f"{folder} holds Parquet files, but neither {MANIFEST} nor {journal} that would tell what they "
            "are. Choose another folder, or give --restart to overwrite them."
        )


def _finish_append(pool: Pool, job: dict[str, Any]) -> bool:
    """Remove the journal of an append that was killed after it had replaced `pool.json`.

    Returns: whether it was this one, so that nothing is left to do, `--again` or not.
    """
    if not pool.folder.exists(APPEND_JOURNAL):
        return False
    try:
        found = read_journal(pool.folder, APPEND_JOURNAL)["job"]
    except UserError:  # a damaged one is reported when it is gone on from
        return False
    before = found.pop("generations", [])
    found.pop("class_names", None)
    digests = [g["digest"] for g in pool.manifest["generations"]]
    if len(before) >= len(digests) or digests[: len(before)] != before:
        return False
    pool.folder.delete(APPEND_JOURNAL)
    return bool(found == job)


def choose_shard_rows(given: int | None, shape: tuple[int, int, int]) -> int:
    """The given images a shard, or as many as fit; UserError if they do not."""
    most = max(1, SHARD_BYTES // int(np.prod(shape)))
    if given is None:
        return rows_a_shard(shape)
    if not 1 <= given <= most:
        raise UserError(
            f"--shard-rows {given}: allowed are 1 to {most} for images of shape {shape} (64 MiB)."
        )
    return given
