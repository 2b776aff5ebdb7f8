"""The labelled set: read, check, and split into labelled, validation and test images."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from ssat_ray.config import DataConfig
from ssat_ray.errors import UserError
from ssat_ray.places import Place, local_copy

if TYPE_CHECKING:
    import torch

SPLITS = ("labelled", "validation", "test")
Rows = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Images (N, H, W, C) and labels (N,)."""


@dataclass(frozen=True)
class LabelledSet:
    """Three disjoint splits: name -> (images (N, H, W, C) uint8, labels (N,) int64)."""

    splits: dict[str, Rows]
    num_classes: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        _, height, width, channels = self.splits["labelled"][0].shape
        return channels, height, width

    def tensors(self, split: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (N, C, H, W) uint8 and labels (N,) int64 of one split."""
        import torch  # `ssat pool synth` does without

        images, labels = self.splits[split]
        return to_nchw(images), torch.from_numpy(labels)

    def save(self, folder: Place) -> dict[str, bytes]:
        """The files of the artefact: name -> content."""
        tensors: dict[str, np.ndarray] = {}
        for name, (images, labels) in self.splits.items():
            tensors[f"{name}.image"], tensors[f"{name}.label"] = images, labels
        tensors["num_classes"] = np.array([self.num_classes])
        return {"labelled.safetensors": save(tensors)}

    @classmethod
    def load(cls, folder: Place) -> LabelledSet:
        tensors = load_file(local_copy(folder / "labelled.safetensors"))
        splits = {name: (tensors[f"{name}.image"], tensors[f"{name}.label"]) for name in SPLITS}
        return cls(splits, int(tensors["num_classes"][0]))


def to_nchw(images: NDArray[np.uint8]) -> torch.Tensor:
    """(N, H, W, C) uint8 array -> (N, C, H, W) uint8 tensor."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def unit_float(images: torch.Tensor) -> torch.Tensor:
    """uint8 in 0..255 -> float32 in [0, 1]."""
    return images.float().div_(255.0)


def read_labelled(config: DataConfig) -> LabelledSet:
    """Read and split the labelled set that the configuration names.

    Raises:
        UserError: a file is missing or is no npz; arrays are missing, of differing lengths, of an
            object type, out of range or NaN; fewer than two classes; fewer images than the splits need.
    """
    test: Rows | None = None
    if config.name == "digits":
        train = _sklearn_digits()
    elif config.name == "npz":
        train = _npz(Path(str(config.path)))
    else:
        from ssat_ray.data.published import read_published

        train, test = read_published(config)
    return split(train, config, test)


def split(train: Rows, config: DataConfig, test: Rows | None = None) -> LabelledSet:
    """Seeded split; the test images come first, so they do not depend on the other sizes.

    Args:
        test: the set's own test images, of which `data.num_test` are drawn; without them the test
            images are taken from `train`.
    """
    parts = {}
    if test is not None:
        chosen = _drawn(len(test[0]), {"num_test": config.num_test}, config)
        parts["test"] = _at(test, chosen["num_test"])
    elif config.num_test is None:
        raise UserError("data.num_test=null, but the set has no test images of its own; set it.")
    sizes = {"num_labelled": config.num_labelled, "num_validation": config.num_validation}
    if test is None:
        sizes = {"num_test": config.num_test, **sizes}
    chosen = _drawn(len(train[0]), sizes, config)
    parts |= {name.removeprefix("num_"): _at(train, rows) for name, rows in chosen.items()}
    num_classes = 1 + max(int(labels.max()) for _, labels in (train, test or train))
    found = np.unique(parts["labelled"][1])
    if len(found) < 2:
        raise UserError(
            "the labelled images are all of one class; a decision boundary needs at least two. "
            "Check the labels, or raise data.num_labelled."
        )
    if len(found) < num_classes:
        missing = sorted(set(range(num_classes)) - set(found.tolist()))
        raise UserError(
            f"labels go up to {num_classes - 1}, but no labelled image has class "
            f"{', '.join(map(str, missing[:10]))}. Number the classes from 0 without gaps, and raise "
            "data.num_labelled (or change data.split_seed) until each class is among them."
        )
    return LabelledSet({name: parts[name] for name in SPLITS}, num_classes)


def _drawn(
    count: int, sizes: Mapping[str, int | None], config: DataConfig
) -> dict[str, NDArray[np.int64]]:
    """Rows of each part, by a seeded permutation; the part whose size is None gets what is left."""
    asked = sum(size for size in sizes.values() if size is not None)
    if asked + (None in sizes.values()) > count:
        raise UserError(
            f"the labelled set has {count} images, {' + '.join(f'data.{name}' for name in sizes)} "
            f"ask for {asked}{' and some more' if None in sizes.values() else ''}."
        )
    order = np.random.default_rng(config.split_seed).permutation(count)
    found, start = {}, 0
    for name, size in sizes.items():
        stop = start + (count - asked if size is None else size)
        found[name], start = order[start:stop], stop
    return found


def _at(rows: Rows, index: NDArray[np.int64]) -> Rows:
    return rows[0][index], rows[1][index]


def _sklearn_digits() -> Rows:
    """UCI digits as shipped with scikit-learn: (1797, 8, 8, 1) uint8; 0..16 scaled to 0..255.

    Read from its file, since importing scikit-learn takes seconds.
    """
    package = find_spec("sklearn")
    assert package is not None and package.submodule_search_locations
    file = Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    table = np.loadtxt(file, delimiter=",")  # 64 pixels and the label
    images = np.round(table[:, :64] * (255.0 / 16.0)).astype(np.uint8)
    return images.reshape(-1, 8, 8, 1), table[:, 64].astype(np.int64)


def _npz(path: Path) -> Rows:
    if not path.is_file():
        raise UserError(f"data.path: {path} does not exist.")
    try:
        opened = np.load(path, allow_pickle=False)
        if not isinstance(opened, np.lib.npyio.NpzFile):
            raise UserError(f"{path} is one array, not an npz with `image` and `label`.")
        with opened as archive:
            missing = {"image", "label"} - set(archive.files)
            if missing:
                raise UserError(
                    f"{path} lacks the array(s) {', '.join(sorted(missing))}; found {', '.join(archive.files)}."
                )
            images, labels = archive["image"], archive["label"]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is not a readable npz of plain arrays: {error}") from error
    return check_images(images, str(path)), check_labels(labels, len(images), str(path))


def check_images(images: NDArray[np.generic], source: str) -> NDArray[np.uint8]:
    """(N, H, W[, C]) uint8, or float in [0, 1], as (N, H, W, C) uint8; UserError names the row."""
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise UserError(
            f"{source}: images must be (N, H, W) or (N, H, W, C) with 1 or 3 channels, found {images.shape}."
        )
    if images.dtype == np.uint8:
        return images.view(np.uint8)
    if images.dtype.kind != "f":
        raise UserError(f"{source}: images must be uint8 or float in [0, 1], found {images.dtype}.")
    flat = images.reshape(len(images), -1).astype(np.float64)
    bad = ~np.isfinite(flat).all(1)
    if bad.any():
        raise UserError(
            f"{source}: image {int(bad.argmax())} has NaN or infinite pixels ({int(bad.sum())} in all)."
        )
    bad = (flat.min(1) < 0) | (flat.max(1) > 1)
    if bad.any():
        raise UserError(
            f"{source}: image {int(bad.argmax())} has pixels outside [0, 1]; give uint8 or scale the floats."
        )
    return np.round(flat.reshape(images.shape) * 255.0).astype(np.uint8)


def check_labels(labels: NDArray[np.generic], count: int, source: str) -> NDArray[np.int64]:
    """(N,) integers from 0; UserError otherwise."""
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise UserError(
            f"{source}: labels must be {count} integers, one an image; found {labels.shape} {labels.dtype}."
        )
    if count and labels.min() < 0:
        raise UserError(
            f"{source}: label {int(labels.min())} of image {int(labels.argmin())} is negative."
        )
    return labels.astype(np.int64)
