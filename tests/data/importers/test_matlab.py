"""SVHN's .mat files, written by SciPy."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import loadmat, savemat
from scipy.sparse import csc_array

from ssat_ray.data.importers.base import DamagedFile, ImportOptions, open_source
from ssat_ray.errors import UserError
from tests.data.importers.generated import Case, cases, check

IMAGES = np.random.default_rng(0).integers(0, 256, (50, 8, 6, 3), dtype=np.uint8)
LABELS = 1 + np.arange(50) % 10


CODES = {
    "i1": (8, 1),
    "u1": (9, 2),
    "i2": (10, 3),
    "u2": (11, 4),
    "i4": (12, 5),
    "u4": (13, 6),
    "f4": (7, 7),
    "f8": (6, 9),
    "i8": (14, 12),
    "u8": (15, 13),
}
"""Of an array's class, and of the type in which its numbers are stored."""


def element(order: str, kind: int, data: bytes) -> bytes:
    """Data and its tag, in which up to four bytes lie."""
    if len(data) <= 4:
        return struct.pack(f"{order}I4s", len(data) << 16 | kind, data)
    return struct.pack(f"{order}II", kind, len(data)) + data + bytes(-len(data) % 8)


def write(path: Path, order: str, compressed: bool, **arrays: np.ndarray) -> None:
    """By hand, in this byte order, and doubles as bytes where they fit, as MATLAB stores them."""
    content = b"MATLAB 5.0".ljust(124) + struct.pack(f"{order}HH", 0x0100, 0x4D49)
    for name, array in arrays.items():
        kind = array.dtype.str[1:]
        stored = "u1" if kind == "f8" and np.isin(array, np.arange(256)).all() else kind
        matrix = element(order, 6, struct.pack(f"{order}II", CODES[kind][0], 0))
        matrix += element(order, 5, struct.pack(f"{order}{array.ndim}i", *array.shape))
        matrix += element(order, 1, name.encode())
        matrix += element(order, CODES[stored][1], array.astype(order + stored).tobytes("F"))
        matrix = element(order, 14, matrix)
        if compressed:
            packed = zlib.compress(matrix)
            matrix = struct.pack(f"{order}II", 15, len(packed)) + packed
        content += matrix
    path.write_bytes(content)


@settings(max_examples=60, deadline=None)
@given(
    case=cases(["u1", "<f4", "<f8"], ["NHWC"]),
    writer=st.sampled_from(["scipy", "<", ">"]),
    compressed=st.booleans(),
    names=st.sampled_from([("X", "y"), ("pixels", "kinds")]),
    stated=st.booleans(),
    label_kind=st.sampled_from([None, *CODES]),
    classes=st.sampled_from([(1, 10), (0, 9), (0, 10), (1, 4)]),
    is_column=st.booleans(),
    start=st.integers(0, 31),
    block=st.integers(1, 4000),
)
def test_every_variant_is_what_was_written(
    tmp_path_factory,
    case: Case,
    writer: str,
    compressed: bool,
    names: tuple[str, str],
    stated: bool,
    label_kind: str | None,
    classes: tuple[int, int],
    is_column: bool,
    start: int,
    block: int,
) -> None:
    rows = len(case.pixels)
    arrays, labels = {names[0]: case.images.transpose(1, 2, 3, 0)}, None
    if label_kind is not None:
        first, last = classes
        labels = first + case.labels % (last - first + 1)
        stored = labels.astype(label_kind).reshape((rows, 1) if is_column else (1, rows))
        arrays[names[1]] = stored
        if 0 not in labels:
            labels = np.where(labels == 10, 0, labels)
    path = tmp_path_factory.mktemp("mat") / "a.mat"
    if writer == "scipy":
        savemat(path, arrays, do_compression=compressed)
    else:
        write(path, writer, compressed, **arrays)
    keys = {"image_key": names[0], "label_key": names[1]} if names[0] != "X" else {}
    expected = replace(case, read_as=case.read_as.replace("NHWC", "HWCN"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ssat_ray.data.importers.arrays.BLOCK_BYTES", block)
        options = ImportOptions(range=case.range if stated else None, **keys)
        check(open_source([path], options), expected, labels, start)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", [np.uint8, np.float64])
def test_svhn(
    tmp_path: Path, compressed: bool, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssat_ray.data.importers.arrays.BLOCK_BYTES", 7 * IMAGES[0].nbytes)
    path = tmp_path / "extra.mat"
    content = {"X": IMAGES.transpose(1, 2, 3, 0), "y": LABELS[:, None].astype(kind)}
    savemat(path, content, do_compression=compressed)
    source = open_source([path], ImportOptions())
    assert source.rows == 50 and source.shape == (8, 6, 3)
    assert source.read_as == "uint8 HWCN" and source.labels_from == "array y"
    for start in (0, 9):
        blocks = list(source.blocks(start))
        np.testing.assert_array_equal(np.concatenate([b.images for b in blocks]), IMAGES[start:])
        found = np.concatenate([b.labels for b in blocks])
        np.testing.assert_array_equal(found, (LABELS % 10)[start:])
        assert len(blocks) == -(-(50 - start) // 7) and blocks[0].images.flags.c_contiguous


def test_labels_that_have_a_zero_stay_as_they_are(tmp_path: Path) -> None:
    savemat(tmp_path / "a.mat", {"X": IMAGES.transpose(1, 2, 3, 0), "y": np.arange(50) % 11})
    (block,) = open_source([tmp_path / "a.mat"], ImportOptions()).blocks()
    np.testing.assert_array_equal(block.labels, np.arange(50) % 11)


@pytest.mark.parametrize("compressed", [False, True])
def test_other_variables_are_passed_over(tmp_path: Path, compressed: bool) -> None:
    content = {
        "note": "text", "cells": np.array([1, "a"], object), "s": {"X": 1}, "z": np.array(1j),
        "X": IMAGES.transpose(1, 2, 3, 0), "sparse": csc_array(np.eye(3)), "y": LABELS,
    }  # fmt: skip
    savemat(tmp_path / "a.mat", content, do_compression=compressed)
    (block,) = open_source([tmp_path / "a.mat"], ImportOptions()).blocks()
    np.testing.assert_array_equal(block.images, IMAGES)
    np.testing.assert_array_equal(block.labels, LABELS % 10)


@pytest.mark.parametrize("kind", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
@pytest.mark.parametrize("rows", [1, 2, 50])
def test_labels_of_every_type(tmp_path: Path, kind: str, rows: int) -> None:
    """One or two small numbers lie in the tag itself."""
    content = {"X": IMAGES[:rows].transpose(1, 2, 3, 0), "y": np.arange(rows).astype(kind)}
    savemat(tmp_path / "a.mat", content)
    (block,) = open_source([tmp_path / "a.mat"], ImportOptions()).blocks()
    np.testing.assert_array_equal(block.labels, np.arange(rows))


@pytest.mark.parametrize("order", ["<", ">"])
def test_byte_orders(tmp_path: Path, order: str) -> None:
    """Written by hand, which SciPy reads too: floating-point pixels, stored as bytes."""
    write(tmp_path / "a.mat", order, False, X=IMAGES.transpose(1, 2, 3, 0).astype(float))
    np.testing.assert_array_equal(loadmat(tmp_path / "a.mat")["X"][..., 7], IMAGES[7])
    (block,) = open_source([tmp_path / "a.mat"], ImportOptions(range="0,255")).blocks()
    np.testing.assert_array_equal(block.images, IMAGES)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"y": LABELS}, r"X is missing \(found y\)"),
        ({"X": IMAGES[0]}, r"X is of shape \(8, 6, 3\)"),
        ({"X": IMAGES.transpose(1, 2, 3, 0), "y": LABELS[:9]}, "9 labels.*50 images"),
        ({"X": IMAGES.transpose(1, 2, 3, 0), "y": LABELS + 0.5}, "labels must be integers"),
        ({"X": IMAGES.transpose(1, 2, 3, 0), "y": "cat"}, "y is no array of numbers"),
        ({"X": IMAGES.transpose(1, 2, 3, 0), "y": LABELS.astype(object)}, "y is no array"),
        ({"X": IMAGES.transpose(1, 2, 3, 0), "y": csc_array(np.eye(3))}, "y is no array"),
    ],
)
def test_what_is_refused(tmp_path: Path, content: dict, expected: str) -> None:
    savemat(tmp_path / "a.mat", content)
    with pytest.raises(UserError, match=expected):
        open_source([tmp_path / "a.mat"], ImportOptions())


def test_truncated_and_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    savemat(path, {"X": IMAGES.transpose(1, 2, 3, 0)}, do_compression=True)
    data = path.read_bytes()
    for broken in (data[: len(data) // 2], b"text" * 100, data[:-1], data[:100], data[:130]):
        path.write_bytes(broken)
        with pytest.raises(DamagedFile, match="truncated, or no MATLAB 5 file"):
            open_source([path], ImportOptions())
    path.write_bytes(data[:124] + b"\0\2" + data[126:])
    with pytest.raises(UserError, match=r"MATLAB 7\.3 \(HDF5\); save it with -v6"):
        open_source([path], ImportOptions())
