"""SVHN's .mat files (MATLAB 5): X (32, 32, 3, N) uint8, y with 10 standing for 0."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ssat_ray.data.importers.arrays import ArraySource, InMemory
from ssat_ray.data.importers.base import DamagedFile, ImportOptions, Source
from ssat_ray.errors import UserError


def open_file(path: Path, options: ImportOptions) -> Source:
    """The images of one file, held in memory; they are transposed block by block.

    Raises:
        UserError: X or y is missing or of another shape, or the file is of MATLAB 7.3.
        DamagedFile: it is no MATLAB 5 file, or truncated.
    """
    from scipy.io import loadmat

    names = options.image_key or "X", options.label_key or "y"
    try:
        arrays = loadmat(path, variable_names=list(names))
    except NotImplementedError as error:
        raise UserError(f"{path} is of MATLAB 7.3 (HDF5); save it with -v6 or -v7.") from error
    except MemoryError as error:
        raise UserError(f"{path} asks for more memory than there is.") from error
    except Exception as error:  # a broken file can raise nearly anything
        raise DamagedFile(f"{path} is truncated, or no MATLAB 5 file: {error}.") from error
    found = ", ".join(name for name in arrays if not name.startswith("__")) or "neither"
    images = arrays.get(names[0])
    if images is None or images.ndim != 4:
        shape = f"of shape {images.shape}" if images is not None else f"missing (found {found})"
        raise UserError(f"{path}: {names[0]} is {shape}; (H, W, C, N) is read.")
    labels = arrays.get(names[1])
    rows = None
    if labels is not None:
        if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iuf":
            raise UserError(f"{path}: {names[1]} is no array of numbers; labels must be integers.")
        if labels.dtype.kind == "f" and (labels == np.rint(labels)).all():
            labels = labels.astype(
                np.int64
            )  # MATLAB's numbers are floating-point unless told otherwise
        labels = labels.reshape(-1)
        if len(labels) and labels.min() >= 1 and labels.max() == 10:
            labels = labels % 10
        rows = InMemory(labels, f"{path}: {names[1]}")
    per_row = InMemory(np.moveaxis(images, 3, 0), f"{path}: {names[0]}")
    return ArraySource(per_row, rows, options, str(path))
