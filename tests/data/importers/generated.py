"""Generated images as files hold them, the pixels they stand for, and all rows that are read."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from ssat_ray.data.importers.base import ImportOptions, Source, open_source

RANGES = {"0,1": (0, 1), "-1,1": (-1, 1), "0,255": (0, 255)}
KINDS = ["u1", "<f2", "<f4", ">f4", "<f8", ">f8"]
LAYOUTS = ["NHWC", "NCHW", "NHW"]
LABEL_KINDS = [None, "i1", "u1", "<i2", ">i4", "<i8", ">u8", "column"]


@dataclass(frozen=True)
class Case:
    """What a file holds, and what must come of it.

    Attributes:
        images: of any type and layout.
        pixels: (N, H, W, C) uint8.
        labels: int64, -1 = none.
        range: of floating-point images; None for uint8.
        read_as: how a `Source` must call it.
    """

    images: np.ndarray
    pixels: np.ndarray
    labels: np.ndarray
    range: str | None
    read_as: str

    def labels_as(self, kind: str | None) -> np.ndarray | None:
        """The labels as one of `LABEL_KINDS` can hold them: without -1 if it has no sign."""
        if kind is None:
            return None
        if kind == "column":
            return self.labels[:, None]
        return (np.abs(self.labels) if "u" in kind else self.labels).astype(kind)


@st.composite
def cases(draw: st.DrawFn, kinds: Sequence[str] = KINDS, layouts: Sequence[str] = LAYOUTS) -> Case:
    side = st.integers(4, 9)
    shape = draw(st.tuples(st.integers(1, 30), side, side, st.sampled_from([1, 3])))
    layout = draw(st.sampled_from([name for name in layouts if name != "NHW" or shape[3] == 1]))
    kind, range_ = draw(st.sampled_from(kinds)), draw(st.sampled_from(list(RANGES)))
    rng, is_whole = np.random.default_rng(draw(st.integers(0, 999))), draw(st.booleans())
    values = 255 * rng.random(shape)
    if is_whole:
        values = np.rint(values)
    values.reshape(-1)[:2] = 0, 255  # the first block shows the whole range
    if kind == "u1":
        images = pixels = values.astype(np.uint8)
    else:
        low, high = RANGES[range_]
        images = (values / 255 * (high - low) + low).astype(kind)
        pixels = np.rint((images.astype(np.float64) - low) * 255 / (high - low)).astype(np.uint8)
    if layout == "NCHW":
        images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    elif layout == "NHW":
        images = images[..., 0]
    told = None if kind == "u1" else range_
    read_as = " ".join(filter(None, (np.dtype(kind).name, told, layout)))
    return Case(images, pixels, rng.integers(-1, 100, shape[0]), told, read_as)


def encode(pixels: np.ndarray, suffix: str = "png") -> bytes:
    """An image file of (H, W, C) pixels; JPEG and GIF may change them."""
    buffer = io.BytesIO()
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    kept = {"lossless": True} if suffix == "webp" else {}
    image.save(buffer, Image.registered_extensions()[f".{suffix.lower()}"], **kept)
    return buffer.getvalue()


def rows_of(source: Source, start: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of all blocks."""
    blocks = list(source.blocks(start))
    images = [b.images for b in blocks] or [np.zeros((0, *source.shape), np.uint8)]
    labels = [b.labels for b in blocks] or [np.zeros(0, np.int64)]
    return np.concatenate(images), np.concatenate(labels)


def read(*paths: Path, start: int = 0, **options: object) -> tuple[np.ndarray, np.ndarray]:
    return rows_of(open_source(list(paths), ImportOptions(**options)), start)


def check(source: Source, case: Case, labels: np.ndarray | None, start: int) -> None:
    """That the source is the case with these labels, wherever reading starts."""
    rows = len(case.pixels)
    start = min(start, rows)
    expected = np.full(rows, -1) if labels is None else labels.reshape(-1)
    images, found = rows_of(source, start)
    np.testing.assert_array_equal(images, case.pixels[start:])
    np.testing.assert_array_equal(found, expected[start:])
    assert images.dtype == np.uint8 and found.dtype == np.int64
    assert source.rows == rows and source.read_as == case.read_as
