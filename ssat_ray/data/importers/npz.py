"""NumPy archives (.npz): stored and deflated members, read as streams with their checksums checked."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import BinaryIO, cast

from ssat_ray.data.importers.arrays import BROKEN, ArraySource, NpyStream, Rows
from ssat_ray.data.importers.base import (
    IMAGE_KEYS,
    LABEL_KEYS,
    ImportOptions,
    Source,
    choose_key,
    no_labels,
    unreadable,
)
from ssat_ray.data.importers.npy import open_array
from ssat_ray.errors import UserError

BOMB_RATIO, BOMB_BYTES = 1000, 2**30


def open_file(path: Path, options: ImportOptions) -> Source:
    """The images and labels of one npz.

    Raises:
        UserError: arrays are missing or ambiguous, of a refused type or length, or the archive looks
            like a zip bomb.
        DamagedFile: it is no zip archive, or cut off.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {i.filename.removesuffix(".npy"): i for i in archive.infolist()}
    except (ValueError, *BROKEN) as error:
        problem = f"{path} is no npz archive, or is truncated: {error}."
        raise unreadable(str(path), error, problem) from error
    names = list(members)
    image = choose_key(names, options.image_key, IMAGE_KEYS, "--image-key", str(path))
    if image is None:
        raise UserError(
            f"{path} has no array called {', '.join(IMAGE_KEYS)}; found {', '.join(names) or 'none'}. "
            "--image-key and --label-key name the arrays."
        )
    if options.labels is not None and options.label_key is not None:
        raise UserError(f"{path}: --labels and --label-key both name the labels; give one of them.")
    others = [name for name in names if name != image]
    label = choose_key(others, options.label_key, LABEL_KEYS, "--label-key", str(path))
    labels: Rows | None = None
    labels_from = no_labels("array", LABEL_KEYS, others)
    if options.labels is not None:
        labels, labels_from = open_array(Path(options.labels)), f"file {Path(options.labels).name}"
    elif label is not None:
        labels, labels_from = _member(path, members[label]), f"array {label}"
    return ArraySource(_member(path, members[image]), labels, options, str(path), labels_from)


def _member(path: Path, info: zipfile.ZipInfo) -> NpyStream:
    name = f"{path}: {info.filename}"
    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UserError(
            f"{name} is encrypted or not compressed by deflate; np.savez writes what is read."
        )
    if info.file_size > BOMB_BYTES and info.file_size > BOMB_RATIO * info.compress_size:
        raise UserError(
            f"{name} says that {info.compress_size} bytes unpack to {info.file_size}; more than "
            f"{BOMB_RATIO} times is taken for a zip bomb. Save the array with np.savez if it is meant."
        )

    def opened() -> BinaryIO:
        with zipfile.ZipFile(path) as archive:  # the open member keeps the file open
            return cast(BinaryIO, archive.open(info))

    return NpyStream(opened, info.file_size, name, can_seek=False)
