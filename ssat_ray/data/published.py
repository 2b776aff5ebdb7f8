"""Labelled sets as published: CIFAR-10 and CIFAR-100, SVHN, Tiny ImageNet, and folders of images."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ssat_ray.config import DataConfig
from ssat_ray.data.folder import file_digest
from ssat_ray.data.importers.base import ImportOptions, Source, open_source
from ssat_ray.data.importers.encoded import Decoder
from ssat_ray.data.importers.folders import NO_LABEL
from ssat_ray.data.importers.pickled import read_dict
from ssat_ray.data.labelled import Rows
from ssat_ray.errors import UserError

DOWNLOADED = ("cifar10", "cifar100", "svhn")
"""Sets whose files have published checksums, and that `download.py` gets."""

PARTS = {"train", "training", "val", "valid", "validation", "test", "testing"}
"""Names, in small letters, of folders that are parts of a set and no classes."""


def read_published(config: DataConfig) -> tuple[Rows, Rows | None]:
    """Training and test images of the set at `data.path`; no test images for a folder without a `test`.

    Raises:
        UserError: files are missing, damaged, of another format, or (with `data.verify`) not those
            that were published.
    """
    root = Path(str(config.path))
    if not root.is_dir():
        raise UserError(f"data.path: {root} is no folder.")
    match config.name:
        case "cifar10" | "cifar100":
            return _cifar(config, root)
        case "svhn":
            return _svhn(config, root)
        case "tiny-imagenet":
            return _tiny_imagenet(root)
    return _folder(config, root)


def fingerprint(config: DataConfig) -> str:
    """What tells this set's files from others: the SHA-256 of a file's content, or of a folder's listing.

    The files of CIFAR and SVHN are read; for image folders name, size and time of each file must do.
    """
    root, found = Path(str(config.path)), hashlib.sha256()
    if root.is_file():
        return file_digest(root)
    if not root.is_dir():
        raise UserError(f"data.path: {root} does not exist.{_how_to_get(config, root)}")
    published = list(_published_files(config, root))
    if published:
        for path, _ in published:
            found.update(file_digest(path).encode())
        return found.hexdigest()
    found.update(b"a class is a folder with images\n")  # as it was not always
    for path in sorted(_files_below(root)):
        about = path.stat()
        line = f"{path.relative_to(root)} {about.st_size} {about.st_mtime_ns}\n"
        found.update(line.encode())
    return found.hexdigest()


def _files_below(root: Path) -> Iterator[Path]:
    """Also through links to the folders of parts and of classes, as the importer reads them, but to none below."""
    for name, below, files in os.walk(root, followlinks=True):
        folder = Path(name)
        if folder != root and not (folder.parent == root and folder.name.lower() in PARTS):
            below[:] = [one for one in below if not (folder / one).is_symlink()]
        yield from (path for file in files if (path := folder / file).is_file())


def _published_files(config: DataConfig, root: Path) -> Iterable[tuple[Path, str]]:
    """The files that the set consists of, and their MD5 as published; none for folders of images.

    Raises:
        UserError: one is missing.
    """
    if config.name not in DOWNLOADED:
        return
    from torchvision import datasets  # type: ignore[import-untyped]

    if config.name in ("cifar10", "cifar100"):
        about: Any = datasets.CIFAR10 if config.name == "cifar10" else datasets.CIFAR100
        inner = root / about.base_folder
        root = inner if inner.is_dir() else root
        listed = [*about.train_list, *about.test_list]
    else:
        listed = [datasets.SVHN.split_list[split][1:] for split in ("train", "test")]
    for name, md5 in listed:
        if not (root / name).is_file():
            raise UserError(
                f"data.path: {root} has no {name}; {config.name} consists of "
                f"{', '.join(listed_name for listed_name, _ in listed)}.{_how_to_get(config, root)}"
            )
        yield root / name, md5


def _how_to_get(config: DataConfig, root: Path) -> str:
    known = config.name in DOWNLOADED
    return f" To get it: ssat data download {config.name} --to {root}" if known else ""


def verified_files(config: DataConfig, root: Path) -> list[Path]:
    """The files of CIFAR or SVHN in a folder; with `data.verify` only if they are those that were published.

    Raises:
        UserError: one is missing, or is not the published one.
    """
    paths = []
    for path, md5 in _published_files(config, root):
        if config.verify:
            found = file_digest(path, "md5")
            if found != md5:
                raise UserError(
                    f"{path} is not the published file: its MD5 is {found}, not {md5}. Get it again, or set "
                    "data.verify=false if it is meant to differ."
                )
        paths.append(path)
    return paths


def _cifar(config: DataConfig, root: Path) -> tuple[Rows, Rows]:
    label = "labels" if config.name == "cifar10" else "fine_labels"
    parts = [_batch(path, label) for path in verified_files(config, root)]
    return _joined(parts[:-1]), parts[-1]


def _batch(path: Path, label: str) -> Rows:
    """One python batch: `data` (N, 3072) uint8, red, green and blue planes of 32 x 32, and labels."""
    content = read_dict(path)
    data, labels = content.get("data"), content.get(label)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (3072,):
        raise UserError(f"{path}: `data` must be (N, 3072) uint8, as in CIFAR's python version.")
    if not isinstance(labels, list) or len(labels) != len(data):
        raise UserError(f"{path}: `{label}` must be a list of {len(data)} labels.")
    images = data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), np.array(labels)


def _svhn(config: DataConfig, root: Path) -> tuple[Rows, Rows]:
    train, test = (
        _all(open_source([path], ImportOptions())) for path in verified_files(config, root)
    )
    return train, test


def _tiny_imagenet(root: Path) -> tuple[Rows, Rows]:
    """`train/<wnid>/…`, classes in the order of their ids; `val` is the test set, as everywhere."""
    inner = root / "tiny-imagenet-200"
    root = inner if inner.is_dir() else root
    listing = root / "val" / "val_annotations.txt"
    if not (root / "train").is_dir() or not listing.is_file():
        raise UserError(f"data.path: {root} has no train/ or no val/val_annotations.txt.")
    options = ImportOptions(format="folders", channels=3)
    train, names = _labelled(root / "train", options)
    classes, decoder = {name: i for i, name in enumerate(names)}, Decoder(options)
    images, labels = [], []
    for number, line in enumerate(listing.read_text().splitlines(), 1):
        name, _, rest = line.partition("\t")
        wnid, path = rest.split("\t")[0], root / "val" / "images" / name
        if wnid not in classes or not path.is_file():
            raise UserError(f"{listing} line {number}: no class {wnid!r}, or no image {path}.")
        images.append(decoder(path.read_bytes(), str(path)))
        labels.append(classes[wnid])
    return train, (np.stack(images), np.array(labels))


def _folder(config: DataConfig, root: Path) -> tuple[Rows, Rows | None]:
    """A folder for each class; or such folders in `train` and in `test`.

    Raises:
        UserError: folders with the names of a set's parts that are not just these two, images without a class, or
            other classes in `test` than in `train`.
    """
    options = ImportOptions(format="folders", size=config.size, channels=config.channels)
    names = sorted(path.name for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
    parts = [name for name in names if name.lower() in PARTS]
    if len(parts) < 2 and not any(name.lower().startswith("train") for name in parts):
        return _labelled(root, options)[0], None
    if names != ["test", "train"]:
        raise UserError(
            f"{root} has the folders {', '.join(names)}. Of the parts of a set, `train` and `test` are read, with nothing "
            "beside them: move other folders away. Without `test`, give the folder `train` itself as data.path. Validation "
            "images are drawn from `train` (data.num_validation). A class of such a name must be renamed."
        )
    (train, classes), (test, found) = (
        _labelled(root / part, options) for part in ("train", "test")
    )
    if classes != found:
        raise UserError(f"{root}: train has images of the classes {classes}, test of {found}.")
    return train, test


def _labelled(root: Path, options: ImportOptions) -> tuple[Rows, list[str]]:
    """Images and labels of a folder for each class, and the classes' names in the order of their labels."""
    source = open_source([root], options)
    images, labels = _all(source)
    if (labels < 0).any():
        raise UserError(
            f"{root} has images without a class; put each class into its own folder (`{NO_LABEL}` is no class's name)."
        )
    return (images, labels), list(source.class_names)


def _all(source: Source) -> Rows:
    return _joined([(block.images, block.labels) for block in source.blocks()])


def _joined(parts: list[Rows]) -> Rows:
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
