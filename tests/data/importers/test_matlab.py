"""SVHN's .mat files, written by SciPy."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from scipy.io import loadmat, savemat
from scipy.sparse import csc_array

from ssat_ray.data.importers.base import DamagedFile, ImportOptions, open_source
from ssat_ray.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (50, 8, 6, 3), dtype=np.uint8)
LABELS = 1 + np.arange(50) % 10


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
    """Written by hand: floating-point pixels, stored as bytes as MATLAB does where they fit."""

    def element(kind: int, data: bytes) -> bytes:
        return struct.pack(order + "II", kind, len(data)) + data + bytes(-len(data) % 8)

    shape = struct.pack(order + "4i", 8, 6, 3, 50)
    content = element(6, struct.pack(order + "II", 6, 0)) + element(5, shape)
    content += struct.pack(order + "I4s", 1 << 16 | 1, b"X")
    content += element(2, IMAGES.transpose(1, 2, 3, 0).tobytes(order="F"))
    header = b"MATLAB 5.0".ljust(124) + struct.pack(order + "HH", 0x0100, 0x4D49)
    (tmp_path / "a.mat").write_bytes(header + element(14, content))
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
