"""A pool's images for other programs: one npz, or PNG files in a folder for each class."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from ssat_ray.data.importers.folders import NO_LABEL
from ssat_ray.data.pool import Pool
from ssat_ray.data.pool_writer import Report, quiet
from ssat_ray.data.shard import Shard
from ssat_ray.errors import UserError

NPZ = ".npz"
_OTHER_FORMATS = (".npy", ".zip", ".tar", ".gz", ".parquet", ".png", ".pickle", ".mat", ".h5")
_IMAGE = re.compile(r"\d+\.png")


def export_pool(
    pool: Pool, target: str | Path, *, force: bool = False, report: Report = quiet
) -> None:
    """Write all images of a pool, a shard at a time, in the order of their ids.

    - `*.npz`: `image` (N, H, W, C) uint8, `label` (N,) int64 (-1: none), `id` (N,) int64, stored.
    - any other name: a folder with `<class>/<id>.png`, or `<id>.png` if the pool has no classes. Folders are
      named as the pool's classes are, otherwise by their numbers; `none` is for images without a label.

    The target is there whole or not at all.

    Args:
        force: replace a file, or a folder that holds an export and nothing else.

    Raises:
        UserError: the target exists, its folder does not or it cannot be written; a shard is missing or altered.
    """
    if "://" in str(target):
        raise UserError(f"{target}: an export is a local .npz file or a local folder.")
    path = Path(target)
    if path.suffix.lower() in _OTHER_FORMATS:
        raise UserError(f"{path}: give an .npz file, or a folder for PNG files.")
    if not path.absolute().parent.is_dir():
        raise UserError(f"{path}: its folder does not exist; make it first.")
    is_file = path.suffix.lower() == NPZ
    if is_file:
        _check_file(path, force)
    else:
        _check_folder(path, force, _class_folders(pool))
    try:
        with _scratch(path) as scratch:
            (_write_npz if is_file else _write_images)(pool, scratch, report)
    except OSError as error:
        raise UserError(
            f"{path} could not be written: {error.strerror or error}. Nothing is left of it."
        ) from error


def _check_file(path: Path, force: bool) -> None:
    if path.is_dir():
        raise UserError(f"{path} is a folder; give another name for the npz.")
    if path.exists() and not force:
        raise UserError(f"{path} exists; --force replaces it.")


def _check_folder(path: Path, force: bool, names: list[str]) -> None:
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise UserError(f"{path} is no folder; give an .npz file, or another folder for PNG files.")
    if not path.exists() or not any(path.iterdir()):
        return
    foreign = next(_foreign(path, names), None)
    if foreign is not None:
        raise UserError(f"{path} holds {foreign.name}, which no export made; give another folder.")
    if not force:
        raise UserError(f"{path} exists; --force replaces it.")


def _foreign(path: Path, names: list[str]) -> Iterator[Path]:
    """What an export would not have put into a folder."""
    for entry in os.scandir(path):
        made = entry.name.isdecimal() or entry.name in (NO_LABEL, *names)
        inside = made and entry.is_dir(follow_symlinks=False)
        for one in os.scandir(entry) if inside else (entry,):
            if not (one.is_file(follow_symlinks=False) and _IMAGE.fullmatch(one.name)):
                yield Path(one.path)


@contextlib.contextmanager
def _scratch(path: Path) -> Iterator[Path]:
    """A name beside `path` to write under; moved to `path` at the end, removed after an error."""
    scratch, old = (
        path.absolute().with_name(f".{path.name}.{uuid.uuid4().hex}.{end}")
        for end in ("tmp", "old")
    )
    try:
        yield scratch
        if scratch.is_dir() and path.exists():
            path.rename(old)
        scratch.replace(path)
    except BaseException:
        _remove(scratch)
        if old.exists() and not path.exists():
            old.rename(path)
        raise
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _shards(pool: Pool, report: Report) -> Iterator[Shard]:
    rows = 0
    for shard in pool:
        yield shard
        rows += len(shard.ids)
        report(rows, len(pool), int(np.prod(pool.shape)))


def _write_npz(pool: Pool, path: Path, report: Report) -> None:
    """What `np.savez(path, image=..., label=..., id=...)` writes, without the arrays in memory."""
    rows = sum(entry["rows"] for entry in pool.shards)
    with open(path, "xb") as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            with _member(archive, "image", (rows, *pool.shape), np.uint8) as member:
                for shard in _shards(pool, report):
                    member.write(np.ascontiguousarray(shard.images).data)
            for name, column in (("label", 1), ("id", 0)):
                with _member(archive, name, (rows,), np.int64) as member:
                    for index in range(len(pool.shards)):
                        member.write(pool.read_ids(index)[column].astype("<i8").data)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _member(
    archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], kind: type[np.integer[Any]]
) -> Iterator[IO[bytes]]:
    """An array's file in an npz, its header written; the caller writes the values in C order."""
    header = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(kind).newbyteorder("<")),
        "fortran_order": False,
        "shape": shape,
    }
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, header)
        yield member


def _write_images(pool: Pool, folder: Path, report: Report) -> None:
    """PNG files named by id, with zeros in front so that names sort like numbers."""
    from PIL import Image

    last = pool.shards[-1]["last_id"] if pool.shards else 0
    id_digits, names = len(str(last)), _class_folders(pool)
    folder.mkdir()
    for shard in _shards(pool, report):
        for one, image, label in zip(shard.ids, shard.images, shard.labels, strict=True):
            place = folder
            if names:
                place /= NO_LABEL if label < 0 else names[label]
                place.mkdir(exist_ok=True)
            pixels = image[..., 0] if image.shape[-1] == 1 else image
            Image.fromarray(pixels).save(place / f"{one:0{id_digits}d}.png")


def _class_folders(pool: Pool) -> list[str]:
    """A folder name a class: its own name if all classes have one that can be, otherwise its number."""
    names = pool.class_names
    plain = all(name != NO_LABEL and name[0] != "." and "/" not in name for name in names)
    if names and plain and len(names) == pool.num_classes:
        return names
    digits = len(str(max(0, pool.num_classes - 1)))
    return [f"{label:0{digits}d}" for label in range(pool.num_classes)]
