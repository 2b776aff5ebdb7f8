"""Folders of image files: a subfolder for each class, or one flat folder without labels."""

from __future__ import annotations

import heapq
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from ssat_ray.data.importers.base import (
    MAX_IMAGE_BYTES,
    Block,
    ImportOptions,
    Source,
)
from ssat_ray.data.importers.encoded import SUFFIXES, BlockBuilder, Decoder, is_image, read_as
from ssat_ray.data.listing import scan
from ssat_ray.errors import UserError, cannot_be_read


def open_file(path: Path, options: ImportOptions) -> Source:
    """The images below a folder, by name; other files are left out.

    Raises:
        UserError: no images, images beside class folders, or a first image that is refused.
    """
    if not path.is_dir():
        raise UserError(f"{path} is no folder.")
    return ImageFolder(path, options)


NO_LABEL = "none"
"""Subfolder of the images without a label."""


class ImageFolder(Source):
    """Classes are the sorted subfolders that hold images at any depth; rows are sorted by class and path.

    The images of a subfolder `none` have no label; they come last.
    """

    def __init__(self, root: Path, options: ImportOptions) -> None:
        self.name, self._options = str(root), options
        images, folders = scan(self.name, is_image, follow_links=True)
        listed = [name for name in folders if name[0] != "."]
        counts = {name: _count(f"{self.name}/{name}") for name in listed}
        filled = [name for name in listed if counts[name]]
        self.class_names = [name for name in filled if name != NO_LABEL]
        self._unlabelled = f"{self.name}/{NO_LABEL}" if NO_LABEL in filled else None
        if len(images) and filled:
            raise UserError(
                f"{root} holds images and folders of images ({', '.join(filled[:3])}); it must be one "
                "folder for each class, or images alone."
            )
        self.rows = len(images) + sum(counts.values())
        if not self.rows:
            raise UserError(f"{root} holds no images ({', '.join(SUFFIXES)}).")
        first, _ = next(self._files())
        self.shape = self._decoder(first)[1]
        self.read_as = read_as(self.shape, options)
        self.labels_from = (
            "subfolders" if self.class_names else "there are no subfolders, which would be classes"
        )

    def _files(self) -> Iterator[tuple[str, int]]:
        if not self.class_names and self._unlabelled is None:
            yield from ((f"{self.name}/{name}", -1) for name in scan(self.name, is_image)[0])
        for label, name in enumerate(self.class_names):
            yield from ((path, label) for path in _images_below(f"{self.name}/{name}"))
        if self._unlabelled is not None:
            yield from ((path, -1) for path in _images_below(self._unlabelled))

    def _decoder(self, first: str) -> tuple[Decoder, tuple[int, int, int]]:
        """A decoder that has seen the first image, so that rows are alike wherever reading starts."""
        decoder = Decoder(self._options)
        height, width, channels = decoder(_read(first), first).shape
        return decoder, (height, width, channels)

    def blocks(self, start: int = 0) -> Iterator[Block]:
        decoder, builder = None, BlockBuilder(start, self.name)
        for row, (path, label) in enumerate(self._files()):
            if decoder is None:
                decoder, _ = self._decoder(path)
            if row >= start and builder.add(decoder(_read(path), path), label):
                yield builder.take()
        if len(builder):
            yield builder.take()


def _count(folder: str) -> int:
    images, folders = scan(folder, is_image)
    return len(images) + sum(_count(f"{folder}/{name}") for name in folders)


def _images_below(folder: str) -> Iterator[str]:
    """Paths in the order of their parts; of each folder on the way the names are in memory."""
    images, folders = scan(folder, is_image)
    entries = heapq.merge(((name, False) for name in images), ((name, True) for name in folders))
    for name, is_folder in entries:
        path = f"{folder}/{name}"
        yield from _images_below(path) if is_folder else (path,)


def _read(path: str) -> bytes:
    """Its bytes; UserError if it is no regular file of an image's size."""
    try:
        about = os.stat(path)
        if not stat.S_ISREG(about.st_mode) or about.st_size > MAX_IMAGE_BYTES:
            raise UserError(
                f"{path} is no regular file, or has more than {MAX_IMAGE_BYTES} bytes; remove it."
            )
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise cannot_be_read(path, error) from error
