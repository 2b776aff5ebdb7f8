"""Single arrays (.npy): images in one file, labels in another one given by --labels or none."""

from __future__ import annotations

from pathlib import Path

from ssat_ray.data.importers.arrays import ArraySource, NpyStream
from ssat_ray.data.importers.base import ImportOptions, Source, check_not_empty
from ssat_ray.errors import UserError, cannot_be_read


def open_file(path: Path, options: ImportOptions) -> Source:
    """The images of a .npy file with the labels of `options.labels`, if given.

    Raises:
        UserError: an array is of a refused type, order or length, or a file is missing.
        DamagedFile: an array is truncated.
    """
    images, labels = open_array(path), None
    labels_from = "--labels FILE.npy gives them"
    if options.labels is not None:
        labels, labels_from = open_array(Path(options.labels)), f"file {Path(options.labels).name}"
    return ArraySource(images, labels, options, str(path), labels_from)


def open_array(path: Path) -> NpyStream:
    """The array of a .npy file as a stream."""
    try:
        if not path.is_file():
            raise UserError(f"{path} does not exist.")
        check_not_empty(path)
        size = path.stat().st_size
    except OSError as error:
        raise cannot_be_read(path, error) from error
    # Read, not mapped: pages of a mapped file would count as memory of the process.
    return NpyStream(lambda: open(path, "rb"), size, str(path), can_seek=True)
