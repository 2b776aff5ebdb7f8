"""Single .npy files, with and without labels."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssat_ray.data.importers.base import DamagedFile, ImportOptions, open_source
from ssat_ray.errors import UserError
from tests.data.importers.generated import LABEL_KINDS, Case, cases, check

IMAGES = np.random.default_rng(0).integers(0, 256, (50, 4, 5, 3), dtype=np.uint8)


def write(path: Path, array: np.ndarray, version: tuple[int, int]) -> Path:
    """A .npy file with a header of this version."""
    with open(path, "wb") as file:
        np.lib.format.write_array(file, array, version)
    return path


@settings(max_examples=60, deadline=None)
@given(
    case=cases(),
    version=st.sampled_from([(1, 0), (2, 0)]),
    stated=st.booleans(),
    label_kind=st.sampled_from(LABEL_KINDS),
    start=st.integers(0, 31),
    block=st.integers(1, 4000),
)
def test_every_variant_is_what_numpy_wrote(
    tmp_path_factory,
    case: Case,
    version: tuple[int, int],
    stated: bool,
    label_kind: str | None,
    start: int,
    block: int,
) -> None:
    folder, labels, given_labels = tmp_path_factory.mktemp("npy"), case.labels_as(label_kind), None
    if labels is not None:
        given_labels = str(write(folder / "labels.npy", labels, version))
    options = ImportOptions(range=case.range if stated else None, labels=given_labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ssat_ray.data.importers.arrays.BLOCK_BYTES", block)
        path = write(folder / "a.npy", case.images, version)
        check(open_source([path], options), case, labels, start)
    path = write(folder / "fortran.npy", np.asfortranarray(case.images), version)
    with pytest.raises(UserError, match=r"fortran\.npy is in Fortran order"):
        open_source([path], options)


def test_images_and_labels(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", IMAGES)
    np.save(tmp_path / "labels.npy", np.arange(50).astype(">i4"))
    options = ImportOptions(labels=str(tmp_path / "labels.npy"))
    for start in (0, 13, 50):
        blocks = list(open_source([tmp_path / "images.npy"], options).blocks(start))
        assert sum(len(b.labels) for b in blocks) == 50 - start
        for block in blocks:
            np.testing.assert_array_equal(block.images, IMAGES[start:])
            np.testing.assert_array_equal(block.labels, np.arange(start, 50))
    source = open_source([tmp_path / "images.npy"], ImportOptions())
    (block,) = source.blocks()
    assert (block.labels == -1).all()
    assert source.read_as == "uint8 NHWC" and source.labels_from == "--labels FILE.npy gives them"
    assert open_source([tmp_path / "images.npy"], options).labels_from == "file labels.npy"


def test_bad_files(tmp_path: Path) -> None:
    path = tmp_path / "images.npy"
    np.save(path, IMAGES)
    with pytest.raises(UserError, match=r"labels\.npy does not exist"):
        open_source([path], ImportOptions(labels=str(tmp_path / "labels.npy")))
    (tmp_path / "labels.npy").touch()
    with pytest.raises(DamagedFile, match=r"labels\.npy is empty: it has 0 bytes\."):
        open_source([path], ImportOptions(labels=str(tmp_path / "labels.npy")))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedFile, match=r"truncated or corrupt.*3128 bytes, found 3127"):
        open_source([path], ImportOptions())
    path.write_bytes(b"text")
    with pytest.raises(DamagedFile, match=r"no \.npy array"):
        open_source([path], ImportOptions())
    np.lib.format.write_array_header_1_0(
        header := io.BytesIO(),
        {"descr": "|u1", "fortran_order": False, "shape": (2, -3, -8, 3)},
    )
    path.write_bytes(header.getvalue() + bytes(144))
    with pytest.raises(UserError, match=r"uint8 \(2, -3, -8, 3\); allowed"):
        open_source([path], ImportOptions())
    np.save(path, np.array([{}], object), allow_pickle=True)
    with pytest.raises(UserError, match="object array"):
        open_source([path], ImportOptions())


@pytest.mark.parametrize("text", [b"(" * 9000, b"-" * 9000 + b"1", b"{[]: 1}", b"\xff" * 100])
def test_headers_that_are_no_header(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "images.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)
    with pytest.raises(DamagedFile, match=r"no \.npy array"):
        open_source([path], ImportOptions())


@pytest.mark.parametrize("low", [-0.002, -0.1, -0.49, -0.9])
def test_little_negative_values_tell_no_range(tmp_path: Path, low: float) -> None:
    """Read as -1,1, images in 0..1 would have no dark pixels; one far value may be a mistake."""
    images = np.random.default_rng(0).random((10, 4, 5, 3))
    images[3, 2, 1, 0] = low
    np.save(tmp_path / "a.npy", images)
    with pytest.raises(UserError, match=rf"a\.npy .* span {low:g} to .* tells no range.*--range"):
        open_source([tmp_path / "a.npy"], ImportOptions())
    with pytest.raises(UserError, match=rf"a\.npy row 3 has a pixel of {low:g}, outside"):
        list(open_source([tmp_path / "a.npy"], ImportOptions(range="0,1")).blocks())
    (block,) = open_source([tmp_path / "a.npy"], ImportOptions(range="-1,1")).blocks()
    np.testing.assert_array_equal(block.images, np.rint((images + 1) * 127.5).astype(np.uint8))


@pytest.mark.parametrize(("high", "num"), [(2.5, 1), (200.0, 1), (2.5, 11)])
def test_a_few_large_values_tell_no_range(tmp_path: Path, high: float, num: int) -> None:
    """Read as 0,255, images in 0..1 would be black."""
    images = np.random.default_rng(0).random((20, 4, 5, 3))
    images.reshape(-1)[:num] = high
    np.save(tmp_path / "a.npy", images)
    with pytest.raises(UserError, match=rf"a\.npy .* span .* to {high:g}, which tells no range"):
        open_source([tmp_path / "a.npy"], ImportOptions())
    images.reshape(-1)[:12] = high  # 1 % of 1200
    np.save(tmp_path / "a.npy", images)
    source = open_source([tmp_path / "a.npy"], ImportOptions())
    assert source.read_as == "float64 0,255 NHWC"


@pytest.mark.parametrize(
    ("range_", "low", "high"), [("0,1", 0, 1), ("-1,1", -1, 1), ("0,255", 0, 255)]
)
def test_values_a_little_outside_a_given_range_are_clipped(
    tmp_path: Path, range_: str, low: int, high: int
) -> None:
    """As resizing leaves them."""
    path, width = tmp_path / "a.npy", high - low
    images = np.random.default_rng(0).random((20, 4, 5, 3)) * width + low
    images[7, 0, 0] = low - width * 9e-4, high + width * 9e-4, low
    np.save(path, images)
    (block,) = open_source([path], ImportOptions(range=range_)).blocks()
    expected = np.rint((np.clip(images, low, high) - low) * (255 / width)).astype(np.uint8)
    np.testing.assert_array_equal(block.images, expected)
    with pytest.raises(UserError, match="tells no range"):
        open_source([path], ImportOptions())
    images[7, 0, 0, 1] = high + width * 1.1e-3
    np.save(path, images)
    with pytest.raises(UserError, match=rf"row 7 has a pixel of {images[7, 0, 0, 1]:g}, outside"):
        list(open_source([path], ImportOptions(range=range_)).blocks())


def test_values_down_to_a_half_mean_both_signs(tmp_path: Path) -> None:
    images = np.linspace(-0.5, 1, 120).reshape(2, 4, 5, 3)
    np.save(tmp_path / "a.npy", images)
    (block,) = open_source([tmp_path / "a.npy"], ImportOptions()).blocks()
    np.testing.assert_array_equal(block.images, np.rint((images + 1) * 127.5).astype(np.uint8))
