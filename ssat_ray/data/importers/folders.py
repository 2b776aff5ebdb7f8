"""Folders of image files: a subfolder for each class, or one flat folder without labels."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from ssat_ray.data.importers.base import MAX_IMAGE_BYTES, Block, ImportOptions, Source
from ssat_ray.data.importers.encoded import SUFFIXES, BlockBuilder, Decoder, is_image
from ssat_ray.errors import UserError


def open_file(path: Path, options: ImportOptions) -> Source:
    """The images below a folder, by name; other files are left out.

    Raises:
        UserError: no images, images beside class folders, or a first image that is refused.
    """
    if not path.is_dir():
        raise UserError(f"{path} is no folder.")
    return ImageFolder(path, options)


class ImageFolder(Source):
    """Classes are the sorted subfolders that hold images at any depth; rows are sorted by class and path."""

    def __init__(self, root: Path, options: ImportOptions) -> None:
        self.name, self._root, self._options = str(root), root, options
        flat = any(is_image(e.name) for e in os.scandir(root) if e.is_file())
        folders = sorted(e.name for e in os.scandir(root) if e.is_dir() and e.name[0] != ".")
        self._classes = [f for f in folders if next(_images_below(root / f), None) is not None]
        if flat and self._classes:
            raise UserError(
                f"{root} holds images and folders of images ({', '.join(self._classes[:3])}); it must be one "
                "folder for each class, or images alone."
            )
        if not flat and not self._classes:
            raise UserError(f"{root} holds no images ({', '.join(SUFFIXES)}).")
        self.rows = sum(1 for _, _ in self._files())
        first, _ = next(self._files())
        self.shape = self._decoder(first)[1]

    def _files(self) -> Iterator[tuple[Path, int]]:
        if not self._classes:
            names = (e.name for e in os.scandir(self._root) if e.is_file() and is_image(e.name))
            yield from ((self._root / name, -1) for name in sorted(names))
        for label, name in enumerate(self._classes):
            yield from ((path, label) for path in sorted(_images_below(self._root / name)))

    def _decoder(self, first: Path) -> tuple[Decoder, tuple[int, int, int]]:
        """A decoder that has seen the first image, so that rows are alike wherever reading starts."""
        decoder = Decoder(self._options)
        height, width, channels = decoder(_read(first), str(first)).shape
        return decoder, (height, width, channels)

    def blocks(self, start: int = 0) -> Iterator[Block]:
        decoder, builder = None, BlockBuilder(start, self.name)
        for row, (path, label) in enumerate(self._files()):
            if decoder is None:
                decoder, _ = self._decoder(path)
            if row >= start and builder.add(decoder(_read(path), str(path)), label):
                yield builder.take()
        if len(builder):
            yield builder.take()


def _images_below(folder: Path) -> Iterator[Path]:
    for where, _, names in os.walk(folder):
        yield from (Path(where, name) for name in names if is_image(name))


def _read(path: Path) -> bytes:
    """Its bytes; UserError if it is no regular file of an image's size."""
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode) or about.st_size > MAX_IMAGE_BYTES:
            raise UserError(
                f"{path} is no regular file, or has more than {MAX_IMAGE_BYTES} bytes; remove it."
            )
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
