"""Synthetic images: bytes that depend on (seed, id) alone, each change against an oracle, the labels."""

import dataclasses
import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from ssat_ray.data.mix64 import hash_ids
from ssat_ray.data.synth import _STREAM, SynthSettings, SynthSource, _affine, _draw, synth
from ssat_ray.errors import UserError

PLAIN = SynthSettings(
    rotation=0,
    translation=0,
    scale=0,
    shear=0,
    mix=0,
    other_class=0,
    contrast=0,
    brightness=0,
    noise=0,
)


def _source(count: int = 40, shape: tuple[int, int, int] = (8, 8, 1)) -> SynthSource:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, *shape)).astype(np.uint8)
    return SynthSource(images, np.arange(count) % 5)


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    return images, bunch.target.astype(np.int64)


@settings(max_examples=20, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 3000), max_size=4),
    shape=st.sampled_from([(8, 8, 1), (5, 3, 3), (1, 7, 1), (6, 1, 2), (1, 1, 1)]),
    shuffle=st.integers(0, 2**32 - 1),
)
def test_any_split_and_order_of_ids_gives_the_same_bytes(cuts, shape, shuffle) -> None:
    source, ids = _source(shape=shape), np.arange(10**12, 10**12 + 3000)
    images, labels = synth(source, ids, 3)
    assert images.shape == (3000, *shape) and images.dtype == np.uint8
    assert labels.shape == (3000,) and labels.dtype == np.int64
    order = np.random.default_rng(shuffle).permutation(3000)
    for part in np.split(order, sorted(cuts)):
        again, again_labels = synth(source, ids[part], 3)
        np.testing.assert_array_equal(again, images[part])
        np.testing.assert_array_equal(again_labels, labels[part])


def test_the_bytes_are_the_same_on_every_machine() -> None:
    """Written down once: a change means that pools can no longer be continued."""
    images, labels = synth(_source(shape=(6, 5, 3)), np.arange(2000), 7)
    digest = hashlib.sha256(images.tobytes() + labels.astype("<i8").tobytes()).hexdigest()
    assert digest[:20] == "bfada5d0dddf23bffb04"


def test_no_strength_gives_base_images() -> None:
    source = _source(shape=(6, 5, 3))
    images, labels = synth(source, np.arange(4000), 0, settings=PLAIN)
    base = source.planes.reshape(3, -1, 6, 5).transpose(1, 2, 3, 0)
    row_of = {image.tobytes(): row for row, image in enumerate(base)}
    rows = np.array([row_of[image.tobytes()] for image in images])
    np.testing.assert_array_equal(labels, rows // 8)
    counts = np.bincount(rows, minlength=40)
    assert ((counts - 100) ** 2 / 100).sum() < 85  # chi-squared, 39 degrees: p < 1e-4


def test_labels_are_near_uniform_over_the_classes_found() -> None:
    images = np.zeros((100, 2, 2, 1), np.uint8)
    labels = np.array([3] * 90 + [-1] * 8 + [7] * 2)
    drawn = synth(SynthSource(images, labels), np.arange(30_000), 0)[1]
    found, counts = np.unique(drawn, return_counts=True)
    assert found.tolist() == [-1, 3, 7]
    assert np.abs(counts - 10_000).max() < 400


def test_ids_and_seeds_give_different_images() -> None:
    source, ids = _source(), np.arange(50_000)
    first, second = (synth(source, ids, seed)[0].reshape(len(ids), -1) for seed in (0, 1))
    assert len(np.unique(first, axis=0)) == len(ids)
    assert (first != second).any(axis=1).all()


def test_affine_agrees_with_scipy() -> None:
    rng = np.random.default_rng(1)
    images = ndimage.gaussian_filter(rng.uniform(0, 255, (1, 9, 12, 1)), (0, 1, 1, 0))
    source = SynthSource(images.astype(np.uint8), np.zeros(1, np.int64))
    moving = dataclasses.replace(PLAIN, rotation=40, translation=2.5, scale=0.3, shear=0.4)
    moved, _ = synth(source, np.arange(50), 0, settings=moving)
    maps = _maps(source, 50, moving)
    centre = np.array([4.0, 5.5])
    for image, (a, b, c, d, e, f) in zip(moved, maps.T, strict=True):
        matrix = np.array([[d, c], [b, a]])
        expected = ndimage.affine_transform(
            source.planes.reshape(9, 12).astype(np.float64),
            matrix,
            offset=np.array([f, e]) + centre - matrix @ centre,
            order=1,
            mode="nearest",
        )
        assert np.abs(image[..., 0] - expected).max() <= 0.51


def _maps(source: SynthSource, count: int, moving: SynthSettings) -> np.ndarray:
    return _draw(source, hash_ids(np.arange(count), _STREAM), moving).affine.astype(np.float64)


@given(st.floats(-1, 1), st.floats(0, 90))
def test_affine_without_scale_and_shear_is_a_rotation_within_its_limit(draw, rotation) -> None:
    signed = np.array([[draw], [0.0], [0.0], [1.0], [-1.0]])
    limits = dataclasses.replace(PLAIN, rotation=rotation, translation=2.0)
    a, b, c, d, e, f = _affine(signed, limits)[:, 0]
    np.testing.assert_allclose([a * a + c * c, a - d, b + c], [1, 0, 0], atol=1e-12)
    assert abs(np.degrees(np.arctan2(c, a))) <= rotation + 1e-4
    assert (e, f) == (2.0, -2.0)


def test_a_second_image_is_mixed_in_with_at_most_the_weight_given() -> None:
    images = np.zeros((3, 4, 4, 1), np.uint8)
    images[1], images[2] = 100, 250  # two of class 0, one of class 1
    source = SynthSource(images, np.array([0, 0, 1]))
    same = dataclasses.replace(PLAIN, mix=0.4)
    mixed, labels = synth(source, np.arange(4000), 0, settings=same)
    values = mixed[labels == 0].max(axis=(1, 2, 3))
    assert values.max() <= 100 and ((values > 0) & (values <= 40)).mean() > 0.2
    assert not ((values > 40) & (values < 60)).any()
    assert (mixed[labels == 1] == 250).all()
    other, labels = synth(
        source, np.arange(4000), 0, settings=dataclasses.replace(same, other_class=0.5)
    )
    changed = (other[labels == 1] != 250).any(axis=(1, 2, 3)).mean()
    assert 0.18 < changed < 0.32  # half may be of any class, half of those are of the other


def test_noise_is_gaussian_and_independent_between_pixels() -> None:
    source = SynthSource(np.full((1, 7, 6, 3), 128, np.uint8), np.zeros(1, np.int64))
    noisy = dataclasses.replace(PLAIN, noise=12.0)
    images = synth(source, np.arange(5000), 0, settings=noisy)[0].reshape(5000, -1) - 128.0
    assert abs(images.mean()) < 0.1 and abs(images.std() - 12.0) < 0.1
    assert abs((images**4).mean() / images.var() ** 2 - 3) < 0.05
    correlation = np.corrcoef(images, rowvar=False) - np.eye(images.shape[1])
    assert np.abs(correlation).max() < 0.08


def test_contrast_and_brightness_stay_within_their_limits() -> None:
    images = np.zeros((1, 1, 2, 1), np.uint8)
    images[0, 0, :, 0] = 100, 150
    limits = dataclasses.replace(PLAIN, contrast=0.2, brightness=20.0)
    low, high = (
        synth(SynthSource(images, np.zeros(1, np.int64)), np.arange(5000), 0, settings=limits)[0]
        .reshape(-1, 2)
        .T.astype(int)
    )
    contrast = (high - low) / 50
    assert contrast.min() >= 0.78 and contrast.max() <= 1.22 and contrast.std() > 0.1
    middle = (high + low) / 2 - 125
    assert np.abs(middle).max() <= 21.5 and middle.std() > 10


def test_shifts_of_the_distribution() -> None:
    source = _source(shape=(6, 5, 2))
    ids = np.arange(300)
    base = synth(source, ids, 0, settings=PLAIN)[0].astype(int)
    offset = synth(source, ids, 0, settings=dataclasses.replace(PLAIN, offset=-40))[0]
    np.testing.assert_array_equal(offset, np.clip(base - 40, 0, 255))
    inverted = synth(source, ids, 0, settings=dataclasses.replace(PLAIN, invert=True))[0]
    np.testing.assert_array_equal(inverted, 255 - base)
    blurred = synth(source, ids, 0, settings=dataclasses.replace(PLAIN, blur=2))[0]
    expected = base.astype(np.float64)
    for axis in (1, 2, 1, 2):
        expected = ndimage.convolve1d(expected, [0.25, 0.5, 0.25], axis=axis, mode="nearest")
    assert np.abs(blurred - expected).max() <= 0.51


def test_the_nearest_real_image_has_the_same_label(digits) -> None:
    images, labels = synth(SynthSource(*digits), np.arange(3000), 0)
    nearest = KNeighborsClassifier(1).fit(digits[0].reshape(-1, 64), digits[1])
    assert (nearest.predict(images.reshape(-1, 64)) == labels).mean() > 0.9
    real = {image.tobytes() for image in digits[0]}
    assert not any(image.tobytes() in real for image in images)


def test_no_ids_give_no_images() -> None:
    images, labels = synth(_source(), np.empty(0, np.int64), 0)
    assert images.shape == (0, 8, 8, 1) and labels.shape == (0,)


@pytest.mark.parametrize(
    ("name", "value"),
    [("mix", 0.6), ("noise", -1.0), ("rotation", 100.0), ("scale", 1.0), ("offset", np.nan)],
)
def test_settings_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"synth: {name} must be in .*, found {value}"):
        SynthSettings(**{name: value})


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 3, 3), np.uint8), np.zeros(2, int), "images must be"),
        (np.zeros((2, 3, 3, 1)), np.zeros(2, int), "images must be"),
        (np.zeros((0, 3, 3, 1), np.uint8), np.zeros(0, int), "images must be"),
        (np.zeros((2, 3, 3, 1), np.uint8), np.zeros(3, int), "labels must be 2 integers"),
        (np.zeros((2, 3, 3, 1), np.uint8), np.zeros(2), "labels must be 2 integers"),
    ],
)
def test_sources_that_do_not_fit_are_refused(images, labels, message) -> None:
    with pytest.raises(ValueError, match=message):
        SynthSource(images, labels)
