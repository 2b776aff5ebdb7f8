"""npz files of every variant against NumPy, and every way in which one can be bad."""

from __future__ import annotations

import io
import re
import struct
import tracemalloc
import zipfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssat_ray.data.importers.base import DamagedFile, ImportOptions, open_source
from ssat_ray.errors import UserError
from tests.data.importers.generated import LABEL_KINDS, Case, cases, check, read

IMAGES = np.random.default_rng(0).integers(0, 256, (50, 4, 5, 3), dtype=np.uint8)
LABELS = np.arange(50) % 7


def save(path: Path, deflated: bool = False, **arrays: np.ndarray) -> Path:
    (np.savez_compressed if deflated else np.savez)(path, **arrays)
    return path


@settings(max_examples=60, deadline=None)
@given(
    case=cases(),
    stated=st.booleans(),
    label_kind=st.sampled_from(LABEL_KINDS),
    names=st.sampled_from(
        [("image", "label"), ("X", "y"), ("arr_0", "arr_1"), ("data", "targets")]
    ),
    deflated=st.booleans(),
    start=st.integers(0, 31),
    block=st.integers(1, 4000),
)
def test_every_variant_is_what_numpy_wrote(
    tmp_path_factory,
    case: Case,
    stated: bool,
    label_kind: str | None,
    names: tuple[str, str],
    deflated: bool,
    start: int,
    block: int,
) -> None:
    arrays, labels = {names[0]: case.images}, case.labels_as(label_kind)
    if labels is not None:
        arrays[names[1]] = labels
    path = save(tmp_path_factory.mktemp("npz") / "pool.npz", deflated, **arrays)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ssat_ray.data.importers.arrays.BLOCK_BYTES", block)
        options = ImportOptions(range=case.range if stated else None)
        check(open_source([path], options), case, labels, start)


@given(
    cuts=st.lists(st.integers(1, 49), min_size=1, max_size=3, unique=True), start=st.integers(0, 50)
)
@settings(max_examples=20, deadline=None)
def test_parts_follow_one_another(tmp_path_factory, cuts: list[int], start: int) -> None:
    folder, bounds = tmp_path_factory.mktemp("parts"), [0, *sorted(cuts), 50]
    paths = [
        save(folder / f"{a}.npz", bool(a % 2), image=IMAGES[a:b], label=LABELS[a:b])
        for a, b in pairwise(bounds)
    ]
    images, labels = read(*paths, start=start)
    np.testing.assert_array_equal(images, IMAGES[start:])
    np.testing.assert_array_equal(labels, LABELS[start:])


def test_named_keys_and_layout(tmp_path: Path) -> None:
    square = IMAGES[:, :3, :, :]
    path = save(
        tmp_path / "a.npz", x_train=square, image=IMAGES, data=IMAGES, t=LABELS, label=LABELS + 1
    )
    with pytest.raises(UserError, match=r"image, data could all be meant.*x_train.*--image-key"):
        read(path)
    with pytest.raises(UserError, match=r"could be NHWC or NCHW; --layout"):
        read(path, image_key="x_train")
    images, labels = read(path, image_key="x_train", label_key="t", layout="NCHW")
    np.testing.assert_array_equal(images, square.transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(labels, LABELS)
    with pytest.raises(UserError, match=r"has no 'nope' \(--image-key\); found x_train, image"):
        read(path, image_key="nope")


def test_where_labels_come_from(tmp_path: Path) -> None:
    np.save(tmp_path / "l.npy", LABELS)
    path = save(tmp_path / "a.npz", image=IMAGES, t=LABELS, url=LABELS)

    def source(**options: object) -> str:
        return open_source([path], ImportOptions(**options)).labels_from

    assert re.fullmatch(
        r"no array is called label, .*arr_1 \(there is t, url\); --label-key .*", source()
    )
    assert source(label_key="t") == "array t"
    assert source(labels=str(tmp_path / "l.npy")) == "file l.npy"


NAN = IMAGES / np.float32(255)
NAN[17, 0, 0, 0] = np.nan
OUTSIDE = IMAGES / np.float32(255)
OUTSIDE[31, 1, 1, 1] = 1.5
FAR = np.where(np.arange(50) == 33, 40000, LABELS)


@pytest.mark.parametrize(
    ("arrays", "options", "expected"),
    [
        ({"pictures": IMAGES}, {}, r"no array called image, images.*found pictures"),
        ({"image": IMAGES, "label": LABELS[:-1]}, {}, r"49 labels.*50 images"),
        ({"image": IMAGES, "label": np.eye(7)[LABELS].astype(int)}, {}, r"one-hot.*argmax\(1\)"),
        ({"image": IMAGES, "label": LABELS / 1.0}, {}, r"float64; labels must be integers"),
        ({"image": IMAGES, "label": FAR}, {}, r"a\.npz: label\.npy row 33: label 40000"),
        ({"image": IMAGES, "label": -2 * (LABELS == 6)}, {}, r"row 6: label -2"),
        ({"image": IMAGES, "label": FAR.astype(np.uint64) << np.uint64(48)}, {}, r"row 1: label"),
        ({"image": NAN}, {"range": "0,1"}, r"a\.npz: image\.npy row 17 has NaN"),
        ({"image": NAN}, {}, r"row 17 has NaN"),
        ({"image": OUTSIDE}, {"range": "0,1"}, r"row 31 has a pixel of 1\.5, outside the range 0,1"),
        ({"image": OUTSIDE}, {}, r"span 0 to 1\.5, which tells no range.*--range"),
        ({"image": np.zeros((5, 4, 4), "f4")}, {}, r"tells no range"),
        ({"image": IMAGES}, {"range": "0,1"}, r"is uint8; --range is for floating-point images"),
        ({"image": IMAGES, "t": LABELS}, {"label_key": "t", "labels": "l.npy"}, r"give one of them"),
        ({"image": IMAGES.astype(np.int32)}, {}, r"int32; images must be uint8"),
        ({"image": IMAGES.astype(object)}, {}, r"object array.*could run code"),
        ({"image": np.asfortranarray(IMAGES)}, {}, r"Fortran order.*ascontiguousarray"),
        ({"image": IMAGES[..., :2]}, {"layout": "NHWC"}, r"not 1 or 3 channels"),
        ({"image": IMAGES.reshape(50, -1)}, {}, r"shape \(50, 60\)"),
        ({"image": np.zeros((0, 8, 0, 3), np.uint8)}, {}, r"have 0 bytes"),
        ({"image": np.zeros((1, 8000, 8000, 3), np.uint8)}, {}, r"192000000 bytes; allowed"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("deflated", [False, True])
def test_what_is_refused(tmp_path: Path, arrays, options, expected: str, deflated: bool) -> None:
    path = save(tmp_path / "a.npz", deflated, **arrays)
    with pytest.raises(UserError, match=expected):
        read(path, **options)


def test_a_value_outside_the_range_told_by_the_first_rows_is_found_later(tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((400, 64, 64, 3), dtype=np.float32)
    images[399, 0, 0, 0] = -0.5
    with pytest.raises(UserError, match=r"row 399 has a pixel of -0\.5, outside the range 0,1"):
        read(save(tmp_path / "a.npz", image=images))


def test_a_pickle_in_an_object_array_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    path = save(tmp_path / "a.npz", image=np.array([Evil()], object), label=LABELS)
    with pytest.raises(UserError, match="object array"):
        read(path)
    assert not (tmp_path / "ran").exists()


def flip(path: Path, member: str, at: float) -> None:
    """Flip a bit of the member's stored bytes, at a fraction of them."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(member)
    data = bytearray(path.read_bytes())
    name, extra = struct.unpack_from("<HH", data, info.header_offset + 26)
    begin = info.header_offset + 30 + name + extra
    data[begin + int(at * (info.compress_size - 9))] ^= 0x10
    path.write_bytes(data)


@pytest.mark.parametrize("deflated", [False, True])
@pytest.mark.parametrize("at", [0.3, 0.9, 1.0])
@pytest.mark.parametrize("start", [0, 40])
def test_a_flipped_bit_is_found_wherever_reading_starts(
    tmp_path: Path, deflated: bool, at: float, start: int
) -> None:
    images = np.tile(IMAGES, (1, 10, 10, 1))
    path = save(tmp_path / "a.npz", deflated, image=images, label=LABELS)
    flip(path, "image.npy", at)
    with pytest.raises(DamagedFile, match=r"a\.npz: image\.npy is corrupt; row \d+ was reached"):
        read(path, start=start)


@pytest.mark.parametrize("keep", [0.001, 0.5, 0.999])
def test_a_truncated_archive(tmp_path: Path, keep: float) -> None:
    path = save(tmp_path / "a.npz", image=IMAGES, label=LABELS)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(DamagedFile, match=r"a\.npz is no npz archive, or is truncated"):
        read(path)


def test_a_header_that_says_more_than_there_is(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "|u1", "fortran_order": False, "shape": (10**12, 32, 32, 3)}
    )
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("image.npy", buffer.getvalue() + bytes(1000))
    with pytest.raises(DamagedFile, match=r"truncated or corrupt: its header says \(1000000000000"):
        read(path)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    header = {"descr": "|u1", "fortran_order": False, "shape": (400_000, 32, 32, 3)}
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("image.npy", "w", force_zip64=True) as member,
    ):
        np.lib.format.write_array_header_1_0(member, header)
        for _ in range(1200):
            member.write(bytes(2**20))
    with pytest.raises(UserError, match=r"taken for a zip bomb"):
        read(path)


def test_a_long_header_is_refused_before_it_is_read(tmp_path: Path) -> None:
    size = 100 * 2**20
    path = tmp_path / "a.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("image.npy", "w") as member,
    ):
        member.write(b"\x93NUMPY\x02\x00" + size.to_bytes(4, "little"))
        for _ in range(100):
            member.write(b" " * 2**20)
    tracemalloc.start()
    try:
        with pytest.raises(DamagedFile, match=r"its header has 104857600 bytes; allowed are 65536"):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("offset", [6, 8])
def test_zip_features_that_are_not_read(tmp_path: Path, offset: int) -> None:
    """The version that is needed to unpack a member, and its flag of patched data."""
    path = save(tmp_path / "a.npz", image=IMAGES)
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + offset] |= 0xE0 if offset == 6 else 0x20
    path.write_bytes(data)
    with pytest.raises(DamagedFile, match=r"a\.npz"):
        read(path)


def test_zip64_members_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in (("image", IMAGES), ("label", LABELS)):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array)
    images, labels = read(path)
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(labels, LABELS)


def test_parts_of_different_shapes_and_unknown_files(tmp_path: Path) -> None:
    a = save(tmp_path / "a.npz", image=IMAGES)
    b = save(tmp_path / "b.npz", image=IMAGES[:, :, :4])
    with pytest.raises(
        UserError, match=r"b\.npz has images of shape \(4, 4, 3\).*a\.npz of \(4, 5, 3\)"
    ):
        read(a, b)
    with pytest.raises(UserError, match=r"nope\.npz does not exist"):
        read(tmp_path / "nope.npz")
