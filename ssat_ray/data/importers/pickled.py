"""The 80M-TI pickle: a dict of NumPy arrays, read by an unpickler that can build nothing else."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ssat_ray.data.importers.arrays import ArraySource, InMemory
from ssat_ray.data.importers.base import (
    IMAGE_KEYS,
    LABEL_KEYS,
    DamagedFile,
    ImportOptions,
    Source,
    choose_key,
    no_labels,
    unreadable,
)
from ssat_ray.errors import UserError


def open_file(path: Path, options: ImportOptions) -> Source:
    """Images `data` (N, 32, 32, 3) uint8 and labels `extrapolated_targets` of the pickled dict.

    The arrays are held in memory.

    Raises:
        UserError: the pickle asks for anything but plain arrays, or lacks the images.
        DamagedFile: it is no pickle, or truncated.
    """
    arrays = {key: value for key, value in read_dict(path).items() if isinstance(value, np.ndarray)}
    image = choose_key(list(arrays), options.image_key, IMAGE_KEYS, "--image-key", str(path))
    if image is None:
        raise UserError(f"{path} has no array `data`; found {', '.join(arrays) or 'none'}.")
    others = [name for name in arrays if name != image]
    label = choose_key(others, options.label_key, LABEL_KEYS, "--label-key", str(path))
    if arrays[image].ndim == 0:
        raise UserError(f"{path}: {image} is a single value; images must be (N, H, W, C).")
    labels, labels_from = None, no_labels("array", LABEL_KEYS, others)
    if label is not None:
        labels = InMemory(np.atleast_1d(arrays[label]), f"{path}: {label}")
        labels_from = f"array {label}"
    images = InMemory(arrays[image], f"{path}: {image}")
    return ArraySource(images, labels, options, str(path), labels_from)


def read_dict(path: Path) -> dict[str, Any]:
    """The pickled dict: arrays, and plain values as they are; keys as text.

    Raises:
        UserError: the pickle asks for anything but plain arrays and values, or is no dict.
        DamagedFile: it is no pickle, or truncated.
    """
    content, found = _load(path), {}
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}; a dict of arrays is read.")
    for key, value in content.items():
        if isinstance(key, str | bytes):
            name = key.decode("latin1") if isinstance(key, bytes) else key
            if isinstance(value, _Array) and value.array is None:
                raise DamagedFile(f"{path}: array {name} has no content. Get the file again.")
            found[name] = value.array if isinstance(value, _Array) else value
    return found


def _load(path: Path) -> Any:
    try:
        with open(path, "rb") as file:
            return _ArrayUnpickler(file, encoding="bytes").load()
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except MemoryError as error:
        raise UserError(f"{path} asks for more memory than there is.") from error
    except Exception as error:  # a broken pickle can raise nearly anything
        problem = f"{path} is truncated, or no pickle of arrays: {error}."
        raise unreadable(str(path), error, problem) from error


class _ArrayUnpickler(pickle.Unpickler):
    """Knows the names that NumPy's own pickles of arrays use, and gives each a stand-in of this module.

    Not even NumPy's functions are handed out: a crafted state makes some of them read foreign memory.
    """

    def find_class(self, module: str, name: str) -> Any:
        found = STAND_INS.get((module.replace("numpy._core", "numpy.core"), name))
        if found is None:
            raise UserError(
                f"the pickle asks for {module}.{name}. Loading it would run foreign code, so only plain NumPy "
                "arrays are read. Save the arrays with np.savez if you trust the file."
            )
        return found


class _Type:
    """Stands for `numpy.dtype`: a number type whose state is its byte order alone."""

    def __init__(self, spec: str | bytes, *_: object) -> None:
        text = spec.decode("ascii") if isinstance(spec, bytes) else spec
        if not NUMBER.fullmatch(text):
            raise UserError(
                f"the pickle holds an array of type {text!r}; arrays of numbers are read."
            )
        self.dtype = np.dtype(text)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder(">" if state[1] in (">", b">") else "<")


class _Array:
    """Stands for `numpy.ndarray`; its state holds shape, type, order and bytes."""

    array: NDArray[Any] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, is_fortran, data = state
        self._fill(data, kind, shape, "F" if is_fortran else "C")

    def _fill(
        self,
        data: Any,
        kind: _Type,
        shape: tuple[int, ...],
        order: Literal["C", "F"],
        axes: tuple[int, ...] | None = None,
    ) -> None:
        array = np.frombuffer(data, kind.dtype).reshape(shape, order=order)
        self.array = array if axes is None else array.transpose(axes)


def _reconstruct(*_: object) -> _Array:
    """Protocols 0 to 4: an empty array, whose state follows."""
    return _Array()


def _from_buffer(
    data: Any,
    kind: _Type,
    shape: tuple[int, ...],
    order: str | bytes,
    axes: tuple[int, ...] | None = None,
) -> _Array:
    """Protocol 5: the array at once; of order K it is a transposed view of the one that is stored."""
    found = _Array()
    found._fill(data, kind, shape, "F" if order in ("F", b"F") else "C", axes)
    return found


def _encode(text: str, *_: object) -> bytes:
    """How Python 3 spells bytes in protocol 2: as text to be encoded in Latin-1."""
    return text.encode("latin1")


NUMBER = re.compile("[<>|=]?[biuf][1-9][0-9]*")
STAND_INS: dict[tuple[str, str], object] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy", "ndarray"): "numpy.ndarray",
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _encode,
}
