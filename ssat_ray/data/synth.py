"""Pools of any size from a labelled set: each image is a function of (source, settings, seed, id).

An image is drawn from a uniformly drawn class, mixed with a second one, moved by a random affine map,
changed in contrast and brightness, and made noisy. All random numbers come from counter-based SplitMix64
(mix64.py) and all arithmetic is element-wise IEEE float32 and float64, without transcendental functions or
reductions, so any batch, shard, worker or machine gives the same bytes.

Shape legend: n images, H height, W width, P = H W pixels, C channels.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, fields
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ssat_ray.data.mix64 import GOLDEN, UInt64, hash_ids, mix64, unit
from ssat_ray.errors import UserError

UInt8 = NDArray[np.uint8]
Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]

_BLOCK_PIXELS = 1 << 16  # the dozen temporaries of a block take some MiB
_STREAM = 0x53594E5448455349  # keeps images independent of other draws for the same (id, seed)
_NUM_DRAWS = 16  # counters of an image reserved for what is drawn once an image; noise comes after
_NOISE_LANES = 4  # 16-bit draws in a word
_NOISE_GRID = 2.0**12  # quantiles are rounded to it, so that libm's last bit does not matter


@dataclass(frozen=True)
class SynthSettings:
    """How far synthetic images go from their base images; all zero gives the base images.

    Attributes:
        rotation: largest angle either way, degrees, in [0, 90].
        translation: largest shift either way along each axis, pixels.
        scale: largest change of size either way, a share in [0, 1).
        shear: largest horizontal shear either way, pixels a row.
        mix: largest weight of the second image, in [0, 0.5], so that the label stays the base image's.
        other_class: share of images whose second image may be of any class, in [0, 1].
        contrast: largest change of contrast about mid-grey either way, a share in [0, 1].
        brightness: largest change either way, grey levels of 255.
        noise: standard deviation of Gaussian noise, grey levels.
        offset: shift of the distribution: grey levels added to every pixel.
        invert: shift of the distribution: dark for bright, before noise.
        blur: shift of the distribution: number of 3 x 3 binomial blurs of the base images.
    """

    rotation: float = 10.0
    translation: float = 0.5
    scale: float = 0.08
    shear: float = 0.08
    mix: float = 0.35
    other_class: float = 0.1
    contrast: float = 0.15
    brightness: float = 10.0
    noise: float = 8.0
    offset: float = 0.0
    invert: bool = False
    blur: int = 0

    def __post_init__(self) -> None:
        most = {"rotation": 90.0, "scale": 0.99, "mix": 0.5, "other_class": 1.0, "contrast": 1.0}
        for name in (f.name for f in fields(self)):
            low = -math.inf if name == "offset" else 0.0
            value, high = getattr(self, name), most.get(name, math.inf)
            if not (math.isfinite(value) and low <= value <= high):
                raise UserError(f"synth: {name} must be in [{low:g}, {high:g}], found {value}.")


class SynthSource:
    """The labelled images that synthetic ones are made of.

    Args:
        images: (N, H, W, C) uint8.
        labels: (N,) integers; classes are the values found, drawn with equal probability.

    Raises:
        ValueError: shapes or types do not fit, or there is no image.
    """

    def __init__(self, images: UInt8, labels: NDArray[np.integer]) -> None:
        if images.ndim != 4 or images.dtype != np.uint8 or images.size == 0:
            raise ValueError(
                f"images must be (N, H, W, C) uint8, found {images.shape} {images.dtype}"
            )
        if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(
                f"labels must be {len(images)} integers, found {labels.shape} {labels.dtype}"
            )
        self.shape: tuple[int, int, int] = (images.shape[1], images.shape[2], images.shape[3])
        order = np.argsort(labels, kind="stable")
        self.classes, starts, counts = np.unique(
            labels[order], return_index=True, return_counts=True
        )
        self._starts, self.counts = starts.astype(np.int64), counts.astype(np.int64)
        planes = images[order].transpose(3, 0, 1, 2).reshape(images.shape[3], len(images), -1)
        self.planes: UInt8 = np.ascontiguousarray(planes)
        """(C, N, P) uint8, by class."""

    def rows_of_class(self, index: Int64, bits: UInt64) -> Int64:
        """(n,) class indices and random bits -> (n,) rows of `planes`, uniform within the class."""
        return self._starts[index] + _below(bits, self.counts[index])


def synth(
    source: SynthSource, ids: Int64, seed: int, *, settings: SynthSettings | None = None
) -> tuple[UInt8, Int64]:
    """The images of these ids: (n, H, W, C) uint8, and their labels, (n,) int64.

    Memory beyond the result is a few MiB whatever n, or a dozen float32 copies of one large image.

    Args:
        source: what to make them of.
        ids: (n,) integers.
        seed: another seed gives other images for the same ids.
        settings: the defaults if None.
    """
    settings = settings or SynthSettings()
    height, width, channels = source.shape
    keys = hash_ids(ids, seed ^ _STREAM)
    images = np.empty((len(keys), height * width, channels), np.uint8)
    labels = np.empty(len(keys), np.int64)
    work = _Workspace(max(1, _BLOCK_PIXELS // (height * width)), height, width)
    for start in range(0, len(keys), work.rows):
        rows = slice(start, start + work.rows)
        draws = _draw(source, keys[rows], settings)
        labels[rows] = source.classes[draws.class_index]
        work.locate(draws.affine)
        for channel in range(channels):
            pixels = work.render(source.planes[channel], draws, settings)
            if settings.noise:
                work.add_noise(pixels, keys[rows], channel, settings.noise)
            np.rint(pixels, out=pixels)
            np.maximum(pixels, 0.0, out=pixels)
            np.minimum(pixels, 255.0, out=pixels)
            np.copyto(images[rows, :, channel], pixels, casting="unsafe")
    return images.reshape(-1, height, width, channels), labels


class _Draws(NamedTuple):
    """What is drawn once an image, each (n,)."""

    class_index: Int64
    first: Int64
    second: Int64
    weight: Float32
    affine: Float32  # (6, n): source x = a x + b y + e, source y = c x + d y + f, from the centre
    gain: Float32
    bias: Float32


def _draw(source: SynthSource, keys: UInt64, settings: SynthSettings) -> _Draws:
    counters = np.arange(1, _NUM_DRAWS + 1, dtype=np.uint64) * np.uint64(GOLDEN)
    bits = mix64(counters[:, None] + keys)
    class_index = _below(bits[0], np.int64(len(source.classes)))
    other = unit(bits[2]) < settings.other_class
    second_class = np.where(other, _below(bits[3], np.int64(len(source.classes))), class_index)
    weight = unit(bits[5]) * settings.mix
    signed = 2.0 * unit(bits[6:13]) - 1.0
    gain = 1.0 + settings.contrast * signed[5]
    bias = 127.5 * (1.0 - gain) + settings.brightness * signed[6]
    if settings.invert:
        gain, bias = -gain, 255.0 - bias
    return _Draws(
        class_index,
        source.rows_of_class(class_index, bits[1]),
        source.rows_of_class(second_class, bits[4]),
        weight.astype(np.float32),
        _affine(signed, settings).astype(np.float32),
        gain.astype(np.float32),
        (bias + settings.offset).astype(np.float32),
    )


def _affine(signed: NDArray[np.float64], settings: SynthSettings) -> NDArray[np.float64]:
    """(5+, n) draws in [-1, 1) -> (6, n): rotation times shear, over the scale, and translation."""
    # cos and sin by the half-angle's tangent: exact operations instead of a library's sine.
    t = signed[0] * float(np.float32(math.tan(math.radians(settings.rotation) / 2.0)))
    cos, sin = (1.0 - t * t) / (1.0 + t * t), 2.0 * t / (1.0 + t * t)
    shrink = 1.0 / (1.0 + settings.scale * signed[1])
    shear = settings.shear * signed[2]
    return np.stack(
        [
            cos * shrink,
            (cos * shear - sin) * shrink,
            sin * shrink,
            (sin * shear + cos) * shrink,
            settings.translation * signed[3],
            settings.translation * signed[4],
        ]
    )


def _below(bits: UInt64, count: Int64 | np.int64) -> Int64:
    """Uniform integers in [0, count) from the upper 32 bits; count < 2^31."""
    return ((bits >> np.uint64(32)).astype(np.int64) >> 1) * count >> 31


@functools.cache
def _normal_quantiles() -> Float32:
    """(65536,) standard normal quantiles at the mid-points of equal shares."""
    normal = NormalDist()
    upper = np.array([normal.inv_cdf((i + 0.5) / 65536) for i in range(32768, 65536)])
    upper = np.round(upper * _NOISE_GRID) / _NOISE_GRID
    return np.concatenate([-upper[::-1], upper]).astype(np.float32)


class _Workspace:
    """Buffers for a block of up to `rows` images of one channel, as (rows, P)."""

    def __init__(self, rows: int, height: int, width: int) -> None:
        self.rows, self.height, self.width = rows, height, width
        size = height * width
        y, x = np.divmod(np.arange(size), width)
        self._x = (x - (width - 1) / 2).astype(np.float32)
        self._y = (y - (height - 1) / 2).astype(np.float32)
        self._offsets = (np.arange(rows) * size).astype(np.intp)[:, None]
        # A row and a pixel more: neighbours of weight zero may lie behind the last image.
        self._base = np.zeros(rows * size + width + 1, np.float32)
        self._index = np.empty((rows, size), np.intp)
        self._fx, self._fy, self._a, self._b, self._c, self._out = (
            np.empty((rows, size), np.float32) for _ in range(6)
        )
        words = -(-size // _NOISE_LANES)
        self._counters = np.arange(words, dtype=np.uint64)

    def locate(self, affine: Float32) -> None:
        """Set index and weights of the upper left of the four source pixels of each pixel."""
        a, b, c, d, e, f = affine[:, :, None]
        n = affine.shape[1]
        fx, fy, upper, index = self._fx[:n], self._fy[:n], self._a[:n], self._index[:n]
        self._split(a, b, e, self.width, fx, upper)
        np.copyto(index, upper, casting="unsafe")
        self._split(c, d, f, self.height, fy, upper)
        upper *= np.float32(self.width)
        np.add(index, upper, out=index, casting="unsafe")
        index += self._offsets[:n]

    def _split(
        self, a: Float32, b: Float32, shift: Float32, length: int, share: Float32, whole: Float32
    ) -> None:
        """One source coordinate, kept within the image, as whole pixels and the share of the next."""
        np.multiply(a, self._x, out=share)
        np.multiply(b, self._y, out=whole)
        share += whole
        share += shift + np.float32((length - 1) / 2)
        np.maximum(share, 0.0, out=share)
        np.minimum(share, length - 1.0, out=share)
        np.floor(share, out=whole)
        np.minimum(whole, max(length - 2.0, 0.0), out=whole)
        share -= whole

    def render(self, plane: UInt8, draws: _Draws, settings: SynthSettings) -> Float32:
        """(n, P) float32 in grey levels, before noise: mixed, blurred, moved, contrast changed."""
        n, size = len(draws.first), self.height * self.width
        base, second = self._base[: n * size].reshape(n, size), self._a[:n]
        np.copyto(base, plane[draws.first])
        if settings.mix:
            np.copyto(second, plane[draws.second])
            second -= base
            second *= draws.weight[:, None]
            base += second
        for _ in range(settings.blur):
            _blur(base.reshape(n, self.height, self.width))
        out = self._bilinear(n)
        out *= draws.gain[:, None]
        out += draws.bias[:, None]
        return out

    def _bilinear(self, n: int) -> Float32:
        index, fx, fy = self._index[:n], self._fx[:n], self._fy[:n]
        top, bottom, right = self._out[:n], self._a[:n], self._b[:n]
        for left, offset in ((top, 0), (bottom, self.width)):
            np.take(self._base[offset:], index, out=left, mode="clip")
            np.take(self._base[offset + 1 :], index, out=right, mode="clip")
            right -= left
            right *= fx
            left += right
        bottom -= top
        bottom *= fy
        top += bottom
        return top

    def add_noise(self, pixels: Float32, keys: UInt64, channel: int, sigma: float) -> None:
        """Add Gaussian noise, four pixels from a word of 64 bits, to (n, P) float32."""
        n, size = pixels.shape
        first = _NUM_DRAWS + 1 + channel * len(self._counters)
        counters = (self._counters + np.uint64(first)) * np.uint64(GOLDEN)
        lanes = mix64(keys[:, None] + counters).astype("<u8", copy=False).view("<u2")
        noise = np.take(_normal_quantiles(), lanes[:, :size], out=self._c[:n], mode="clip")
        noise *= np.float32(sigma)
        pixels += noise


def _blur(images: Float32) -> None:
    """Blur (n, H, W) float32 in place with [1, 2, 1] / 4 along both axes; edges are repeated."""
    for axis in (1, 2):
        pad = [(1, 1) if i == axis else (0, 0) for i in range(3)]
        padded = np.moveaxis(np.pad(images, pad, mode="edge"), axis, 0)
        images[:] = np.moveaxis((padded[:-2] + padded[2:] + 2.0 * padded[1:-1]) * 0.25, 0, axis)
