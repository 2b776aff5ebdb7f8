"""Labelled sets from where they were published, by torchvision, into the layout that `published.py` reads."""

from __future__ import annotations

import contextlib
import http.client
import socket
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ssat_ray.config import DataConfig
from ssat_ray.data.published import DOWNLOADED, verified_files
from ssat_ray.errors import UserError
from ssat_ray.mistakes import nearest

EXTRA = "svhn-extra"
SETS = (*DOWNLOADED, EXTRA)
BY_HAND = {
    "digits": "it comes with scikit-learn",
    "npz": "it is a file of your own",
    "folder": "it is a folder of your own",
    "tiny-imagenet": "torchvision does not have it; unpack "
    "http://cs231n.stanford.edu/tiny-imagenet-200.zip yourself and let data.path name the folder",
}
SILENCE_SECONDS = 60.0
"""A server that says nothing for so long does not answer."""


def download_set(config: DataConfig) -> None:
    """Make sure that the files of a set are at `data.path`; fetches nothing if they are.

    Files that are not the published ones are fetched again, unless `data.verify` is off.

    Raises:
        UserError: the set cannot be downloaded, the network fails, or what came is not what was published.
    """
    if config.name in BY_HAND:
        raise UserError(f"data.name={config.name} is not downloaded: {BY_HAND[config.name]}.")
    folder = Path(str(config.path))
    with contextlib.suppress(UserError):
        verified_files(config, folder)
        return
    _fetch(config.name, folder)
    verified_files(config, folder)


def download(name: str, folder: Path) -> None:
    """Get the set of this name, one of `SETS`, into a folder; UserError as `download_set`.

    `svhn-extra` is one file, `extra_32x32.mat`, for `ssat pool import`.
    """
    if name in BY_HAND:
        raise UserError(f"{name} is not downloaded: {BY_HAND[name]}.")
    if name not in SETS:
        raise UserError(
            f"unknown set {name!r}{nearest(name, list(SETS))}; known: {', '.join(SETS)}."
        )
    if name == EXTRA:
        _fetch(name, folder)
    else:
        download_set(DataConfig.model_validate({"name": name, "path": str(folder)}))


def _fetch(name: str, folder: Path) -> None:
    """Download, and unpack archives; what is in the folder with the right MD5 is not downloaded."""
    from torchvision.datasets import utils  # type: ignore[import-untyped]

    for url, file, md5 in _sources(name):
        try:
            with _impatient():
                utils.download_url(url, folder, file, md5)
                if file.endswith(".tar.gz"):
                    utils.extract_archive(str(folder / file), str(folder))
        except (OSError, RuntimeError, http.client.HTTPException, tarfile.TarError) as error:
            reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            raise UserError(
                f"{url} could not be downloaded ({reason}). Without a network, get this file by other means, "
                f"put it into {folder} as {file}, and run the same command again."
            ) from error


def _sources(name: str) -> list[tuple[str, str, str]]:
    """URL, file name and MD5 of what a set is published as."""
    from torchvision import datasets  # type: ignore[import-untyped]

    if name in ("cifar10", "cifar100"):
        about: Any = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
        return [(about.url, about.filename, about.tgz_md5)]
    splits = ("extra",) if name == EXTRA else ("train", "test")
    return [tuple(datasets.SVHN.split_list[split]) for split in splits]


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
    """Sockets of a `with` block give up after `SILENCE_SECONDS`; torchvision sets no limit."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
