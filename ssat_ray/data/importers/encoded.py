"""Encoded images (PNG, JPEG, …) to uint8 rows of one shape, decoded by Pillow within limits."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssat_ray.data.importers.base import (
    BLOCK_BYTES,
    MAX_IMAGE_BYTES,
    Block,
    ImportOptions,
    Shape,
    check_labels,
)
from ssat_ray.errors import UserError

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
SUFFIXES = [
    ".png",
    ".jpg",
    ".jpeg",
    ".jpe",
    ".bmp",
    ".gif",
    ".ppm",
    ".pgm",
    ".pbm",
    ".pnm",
    ".tif",
    ".tiff",
    ".webp",
]  # of FORMATS
GREY = ("1", "L", "LA", "La")
COLOUR = ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")


class Decoder:
    """Turns encoded images into arrays of one shape: that of the first one, unless options say otherwise.

    Greyscale, palette and transparent images are converted to the channels of the pool; colour becomes
    grey only if `options.channels` is 1.

    Args:
        hint: a sentence for the message about bytes that are no image at all.
    """

    def __init__(self, options: ImportOptions, hint: str = "") -> None:
        self._hint = hint
        self._channels, self._size = options.channels, options.size
        self._convert = options.channels is not None
        self._first: tuple[str, Shape] | None = None

    def __call__(self, data: bytes, name: str) -> NDArray[np.uint8]:
        """(H, W, C) uint8. UserError: no image, a refused format or mode, another size than the first."""
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                width, height = image.size
                if width * height * 3 > MAX_IMAGE_BYTES:
                    raise UserError(
                        f"{name} is {height}x{width}; at most {MAX_IMAGE_BYTES} bytes are read."
                    )
                if image.mode not in GREY + COLOUR:
                    raise UserError(
                        f"{name} has mode {image.mode}; 8 bits a channel are read. Convert it first."
                    )
                array = self._to_array(image, name)
        except UnidentifiedImageError as error:
            problem = "its bytes are of no such format" if data else "it is empty"
            raise UserError(
                f"{name} is damaged, or no image that is read ({', '.join(FORMATS)}): {problem}.{self._hint}"
            ) from error
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(f"{name} is damaged, or no image that is read: {error}.") from error
        if self._first is None:
            self._first = name, array.shape
        if array.shape != self._first[1]:
            raise UserError(
                f"{name} is {array.shape[0]}x{array.shape[1]}, {self._first[0]} is "
                f"{self._first[1][0]}x{self._first[1][1]} (height x width); all images of a pool have one "
                "size. --size HxW (of a labelled set, data.size=[H,W]) resizes them."
            )
        return array

    def _to_array(self, image: Any, name: str) -> NDArray[np.uint8]:
        from PIL import Image

        is_grey = image.mode in GREY
        if self._channels is None:
            self._channels = 1 if is_grey else 3
        if self._channels == 1 and not is_grey and not self._convert:
            raise UserError(
                f"{name} has colours, the images before it are grey. --channels 3 or 1 (of a labelled set, "
                "data.channels) says what is meant."
            )
        if image.mode in ("P", "PA"):
            image = image.convert("RGBA")  # a palette may hold transparency
        image = image.convert("L" if self._channels == 1 else "RGB")
        if self._size is not None and image.size != self._size[::-1]:
            image = image.resize(self._size[::-1], Image.Resampling.BICUBIC)
        return np.asarray(image).reshape(image.height, image.width, self._channels)


class BlockBuilder:
    """Collects decoded rows and says when they are a block."""

    def __init__(self, first_row: int, name: str) -> None:
        self._name, self._row = name, first_row
        self._images: list[NDArray[np.uint8]] = []
        self._labels: list[int] = []

    def add(self, image: NDArray[np.uint8], label: int) -> bool:
        """Whether the block is full."""
        self._images.append(image)
        self._labels.append(label)
        return len(self._images) * image.nbytes >= BLOCK_BYTES or len(self._images) >= 4096

    def take(self) -> Block:
        """The rows collected since the last one."""
        found = Block(np.stack(self._images), to_labels(self._labels, self._row, self._name))
        self._row += len(self._images)
        self._images, self._labels = [], []
        return found

    def __len__(self) -> int:
        return len(self._images)


def to_labels(labels: Sequence[int], first_row: int, name: str) -> NDArray[np.int64]:
    """Checked labels; values beyond 64 bits are out of range like others."""
    found = np.array([max(-2, min(label, 2**31)) for label in labels], np.int64)
    check_labels(found, first_row, name)
    return found


def read_as(shape: Shape, options: ImportOptions) -> str:
    """A `Source`'s `read_as` for encoded images of this shape."""
    resized = "" if options.size is None else f", resized to {shape[0]}x{shape[1]}"
    return f"encoded images, {'RGB' if shape[2] == 3 else 'grey'}{resized}"


def is_image(name: str) -> bool:
    """Whether the suffix is one of an image that is read."""
    return Path(name).suffix.lower() in SUFFIXES
