"""Pickled dicts of arrays as Python 2 and 3 write them, and pickles that ask for more."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import struct
import sys
import tracemalloc
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssat_ray.data.importers.base import DamagedFile, ImportOptions, open_source
from ssat_ray.errors import UserError
from tests.data.importers.generated import LABEL_KINDS, Case, cases, check, read

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
LABELS = np.arange(40) % 10


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", ["<i8", ">i4", "u1"])
@pytest.mark.parametrize("module", [b"numpy._core", b"numpy.core"])
def test_every_protocol(tmp_path: Path, protocol: int, kind: str, module: bytes) -> None:
    content = {"data": IMAGES, "extrapolated_targets": LABELS.astype(kind), "note": "text"}
    data = pickle.dumps(content, protocol)
    if module == b"numpy.core" and protocol < 4:  # from 4 on, the length of the name precedes it
        data = data.replace(b"numpy._core", module)
    path = tmp_path / "ti.pickle"
    path.write_bytes(data)
    for start in (0, 7):
        images, labels = read(path, start=start)
        np.testing.assert_array_equal(images, IMAGES[start:])
        np.testing.assert_array_equal(labels, LABELS[start:])


@pytest.mark.parametrize("protocol", [4, 5])
def test_a_transposed_view(tmp_path: Path, protocol: int) -> None:
    """NumPy writes it in protocol 5 as it lies in memory, of order K, with the axes beside."""
    view = np.ascontiguousarray(IMAGES.transpose(3, 1, 2, 0)).transpose(3, 1, 2, 0)
    path = tmp_path / "ti.pickle"
    path.write_bytes(pickle.dumps({"data": view, "extrapolated_targets": LABELS}, protocol))
    images, _ = read(path)
    np.testing.assert_array_equal(images, IMAGES)


def as_numpy_1_wrote_it(data: bytes) -> bytes:
    """With NumPy's modules below `numpy.core`, and without frames, whose lengths would change."""
    operations = list(pickletools.genops(data))
    ends = [*(at for _, _, at in operations[1:]), len(data)]
    old = b""
    for (operation, argument, at), end in zip(operations, ends, strict=True):
        piece = data[at:end]
        if operation.name == "GLOBAL":
            piece = piece.replace(b"numpy._core", b"numpy.core")
        elif operation.name == "SHORT_BINUNICODE" and argument.startswith("numpy._core"):
            text = argument.replace("numpy._core", "numpy.core").encode()
            piece = piece[:1] + bytes([len(text)]) + text
        old += b"" if operation.name == "FRAME" else piece
    return old


@settings(max_examples=60, deadline=None)
@given(
    case=cases(),
    order=st.sampled_from(["C", "F", "transposed"]),
    protocol=st.integers(0, pickle.HIGHEST_PROTOCOL),
    is_old=st.booleans(),
    names=st.sampled_from(
        [("data", "extrapolated_targets"), ("X", "y"), ("images", "targets"), ("pixels", "kinds")]
    ),
    keys_are_bytes=st.booleans(),
    stated=st.booleans(),
    label_kind=st.sampled_from(LABEL_KINDS),
    start=st.integers(0, 31),
    block=st.integers(1, 4000),
)
def test_every_variant_is_what_numpy_pickled(
    tmp_path_factory,
    case: Case,
    order: Literal["C", "F", "transposed"],
    protocol: int,
    is_old: bool,
    names: tuple[str, str],
    keys_are_bytes: bool,
    stated: bool,
    label_kind: str | None,
    start: int,
    block: int,
) -> None:
    if order == "transposed":
        images = np.moveaxis(np.ascontiguousarray(np.moveaxis(case.images, 1, -1)), -1, 1)
    else:
        images = np.asarray(case.images, order=order)
    content: dict[Any, Any] = {"note": "text", names[0]: images}
    labels, keys = case.labels_as(label_kind), {}
    if names[0] == "pixels":
        keys["image_key"] = names[0]
    if labels is not None:
        content[names[1]] = labels
        if names[0] == "pixels":
            keys["label_key"] = names[1]
    if keys_are_bytes:
        content = {name.encode(): value for name, value in content.items()}
    data = pickle.dumps(content, protocol)
    assert b"numpy._core" in data
    if is_old:
        data = as_numpy_1_wrote_it(data)
        assert b"numpy._core" not in data
    path = tmp_path_factory.mktemp("pickle") / "ti.pickle"
    path.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ssat_ray.data.importers.arrays.BLOCK_BYTES", block)
        options = ImportOptions(range=case.range if stated else None, **keys)
        check(open_source([path], options), case, labels, start)


def test_a_pickle_of_python_2(tmp_path: Path) -> None:
    """Python 2 wrote text and bytes alike as byte strings; put together by hand from its opcodes."""

    def text(value: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(value)) + value

    def array(values: np.ndarray, kind: bytes) -> bytes:
        shape = b"(" + b"".join(b"J" + struct.pack("<i", n) for n in values.shape) + b"t"
        dtype = b"cnumpy\ndtype\n(" + text(kind) + b"K\x00K\x01tR(K\x03" + text(b"<") + b"NNNJ"
        dtype += struct.pack("<i", -1) + b"J" + struct.pack("<i", -1) + b"K\x00tb"
        return (
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + text(b"b") + b"tR"
            b"(K\x01" + shape + dtype + b"\x89" + text(values.tobytes()) + b"tb"
        )

    items = text(b"data") + array(IMAGES, b"u1") + text(b"extrapolated_targets")
    path = tmp_path / "ti.pickle"
    path.write_bytes(b"\x80\x02}(" + items + array(LABELS, b"i8") + b"u.")
    images, labels = read(path)
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(labels, LABELS)


class _Evil:
    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize(
    ("function", "name"),
    [(os.mkdir, "posix.mkdir"), (eval, "builtins.eval"), (os.system, "posix.system")],
)
def test_nothing_is_executed(tmp_path: Path, protocol: int, function: object, name: str) -> None:
    made = tmp_path / "made"
    arguments = {os.mkdir: str(made), os.system: f"touch {made}", eval: f"open({str(made)!r}, 'w')"}
    argument = arguments[function]
    path = tmp_path / "ti.pickle"
    with open(path, "wb") as file:
        pickle.dump({"data": IMAGES, "x": _Evil(function, argument)}, file, protocol)
    name = name.replace("builtins", "__builtin__") if protocol < 3 else name
    with pytest.raises(UserError, match=rf"ti\.pickle: the pickle asks for {name}.*np\.savez"):
        read(path)
    assert not made.exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([IMAGES], "holds a list; a dict of arrays"),
        ({"pictures": IMAGES}, "no array `data`; found pictures"),
        ({"data": IMAGES.astype(object)}, r"array of type 'O8'; arrays of numbers"),
        ({"data": IMAGES, "extrapolated_targets": LABELS[:-1]}, "39 labels.*40 images"),
        ({"data": np.array(3)}, "single value"),
        ({"data": np.zeros(3, "S4")}, "type 'S4'"),
        ({"data": np.ma.array(IMAGES)}, r"asks for numpy\.ma"),
        ({"data": np.zeros(2, "M8[s]")}, "type 'M8'"),
    ],
)
def test_what_is_refused(tmp_path: Path, content: object, expected: str) -> None:
    path = tmp_path / "ti.pkl"
    path.write_bytes(pickle.dumps(content, 4))
    with pytest.raises(UserError, match=expected):
        read(path)


@pytest.mark.parametrize("data", [b"t", b"text", pickle.dumps({"data": IMAGES})[:5000]])
def test_broken_files(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "ti.pickle"
    path.write_bytes(data)
    with pytest.raises(DamagedFile, match="truncated, or no pickle"):
        read(path)


def test_a_state_that_does_not_fit_its_bytes(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    pickle.dump({"data": IMAGES}, buffer, 2)
    path = tmp_path / "ti.pickle"
    path.write_bytes(buffer.getvalue().replace(b"K(K K K\x03", b"K)K K K\x03"))
    assert path.read_bytes() != buffer.getvalue()
    with pytest.raises(DamagedFile, match="cannot reshape"):
        read(path)


def test_an_array_without_a_state(tmp_path: Path) -> None:
    path = tmp_path / "ti.pickle"
    path.write_bytes(b"\x80\x02}(X\x04\x00\x00\x00datacnumpy.core.multiarray\n_reconstruct\n)Ru.")
    with pytest.raises(DamagedFile, match=r"ti\.pickle: array data has no content"):
        read(path)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_the_array_is_in_memory_once(tmp_path: Path, protocol: int) -> None:
    images = np.zeros((20_000, 32, 32, 3), np.uint8)
    with open(tmp_path / "ti.pickle", "wb") as file:
        pickle.dump({"data": images, "extrapolated_targets": np.zeros(20_000, int)}, file, protocol)
    tracemalloc.start()
    try:
        for block in open_source([tmp_path / "ti.pickle"], ImportOptions()).blocks():
            del block
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert images.nbytes < peak < images.nbytes + 32 * 2**20, sys.version
