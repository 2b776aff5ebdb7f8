"""WebDataset tars against the arrays in them; hostile and broken tars; nothing is extracted."""

from __future__ import annotations

import io
import json
import os
import tarfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ssat_ray.data.importers.base import DamagedFile, ImportOptions, open_source
from ssat_ray.errors import UserError
from tests.data.importers.generated import encode, read, rows_of

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 5, 4, 3), dtype=np.uint8)
LABELS = np.arange(30) % 7


def png(i: int) -> bytes:
    return encode(IMAGES[i])


def write(path: Path, members: list[tuple[str, bytes]], kind: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, "w", format=kind) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def samples(a: int, b: int, label: str = "cls") -> list[tuple[str, bytes]]:
    found = []
    for i in range(a, b):
        text = {"cls": str(LABELS[i]), "json": json.dumps({"label": int(LABELS[i]), "url": "x"})}
        found.append((f"train/{i:04d}.png", png(i)))
        if label != "none":
            found.append((f"train/{i:04d}.{label}", text[label].encode()))
        found.append((f"train/{i:04d}.txt", b"a caption"))
    return found


@pytest.mark.parametrize("label", ["cls", "json", "none"])
@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("start", [0, 11, 29])
def test_samples(tmp_path: Path, label: str, kind: int, start: int) -> None:
    images, labels = read(write(tmp_path / "a.tar", samples(0, 30, label), kind), start=start)
    np.testing.assert_array_equal(images, IMAGES[start:])
    np.testing.assert_array_equal(labels, LABELS[start:] if label != "none" else -1)


SUFFIXES = ["png", "PNG", "bmp", "ppm", "tif", "webp", "jpg", "gif"]


def as_pillow_reads(data: bytes, channels: int) -> np.ndarray:
    image = Image.open(io.BytesIO(data)).convert("RGB").convert("L" if channels == 1 else "RGB")
    return np.asarray(image).reshape(image.height, image.width, channels)


@settings(max_examples=40, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 11), max_size=2, unique=True),
    suffixes=st.lists(st.sampled_from(SUFFIXES), min_size=1, max_size=5),
    channels=st.sampled_from([1, 3]),
    has_second=st.booleans(),
    label=st.sampled_from(["cls", "json", "named", "none"]),
    field=st.sampled_from(["cls", "class", "label", "y", "targets"]),
    folder=st.sampled_from(["", "train/", "./", "set.v1/é/", "long/" * 28]),
    kind=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT]),
    start=st.integers(0, 12),
    block=st.integers(1, 400),
    seed=st.integers(0, 999),
)
def test_every_variant_is_what_went_into_it(
    tmp_path_factory,
    cuts: list[int],
    suffixes: list[str],
    channels: int,
    has_second: bool,
    label: str,
    field: str,
    folder: str,
    kind: int,
    start: int,
    block: int,
    seed: int,
) -> None:
    """Keys in any order, the files of a sample in any order, and some samples without a label."""
    rng, rows = np.random.default_rng(seed), 12
    labels, pixels = rng.integers(-1, 7, rows), IMAGES[:rows, ..., :channels].copy()
    options: dict[str, Any] = {"channels": 1} if channels == 1 else {}
    if label == "named":
        options["label_key"] = "fine"
    if has_second:
        suffixes = suffixes[:1]
        options["image_key"] = f"full.{suffixes[0].lower()}"
    members: list[list[tuple[str, bytes]]] = []
    for row, number in enumerate(rng.permutation(rows)):
        suffix, value = suffixes[row % len(suffixes)], int(labels[row])
        data = encode(pixels[row], suffix)
        if suffix in ("jpg", "gif"):
            pixels[row] = as_pillow_reads(data, channels)
        sample = {f"full.{suffix}" if has_second else suffix: data, "txt": b"a caption"}
        if has_second:
            sample["thumb.png"] = png(row)
        if value >= 0 and label in ("cls", "named"):
            sample["cls"] = b"%d\n" % (value if label == "cls" else 77)
        if value >= 0 and label in ("json", "named"):
            fields = {field: value} if label == "json" else {"fine": value, field: 77}
            sample["json"] = json.dumps({"url": "x", **fields}).encode()
        order = rng.permutation(sorted(sample))
        members.append([(f"{folder}{number:04d}.{name}", sample[name]) for name in order])
    if label == "none":
        labels[:] = -1
    root, bounds = tmp_path_factory.mktemp("tar"), [0, *sorted(cuts), rows]
    paths = [
        write(root / f"{a}.tar", [member for sample in members[a:b] for member in sample], kind)
        for a, b in pairwise(bounds)
    ]
    source = open_source(paths, ImportOptions(**options))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ssat_ray.data.importers.encoded.BLOCK_BYTES", block)
        images, found = rows_of(source, start)
        np.testing.assert_array_equal(images, pixels[start:])
        np.testing.assert_array_equal(found, labels[start:])
    assert source.starts == bounds[:-1]


@pytest.mark.parametrize("known", [1, 2, 3])
def test_parts_go_on_where_a_journal_says(tmp_path: Path, known: int) -> None:
    paths = [write(tmp_path / f"{a}.tar", samples(a, a + 10)) for a in (0, 10, 20)]
    source = open_source(paths, ImportOptions())
    assert source.rows is None and source.starts == [0]
    list(source.blocks())
    assert source.starts == [0, 10, 20]
    again = open_source(paths, ImportOptions())
    again.starts = source.starts[:known]
    start = known * 10 - 3
    images = np.concatenate([b.images for b in again.blocks(start)])
    np.testing.assert_array_equal(images, IMAGES[start:])
    assert again.starts == [0, 10, 20] and again.where(23) == f"{paths[2]} row 3"


def test_nothing_is_extracted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", samples(0, 5))
    read(path)
    assert os.listdir(tmp_path) == ["a.tar"]


@pytest.mark.parametrize("name", ["../evil.png", "/etc/evil.png", "a/../../evil.png"])
@pytest.mark.parametrize("at", [0, 3])
def test_path_traversal(tmp_path: Path, name: str, at: int) -> None:
    members = samples(0, 3)
    members.insert(at, (name, png(0)))
    with pytest.raises(UserError, match=rf"a\.tar: member {name} has a path that leads out"):
        read(write(tmp_path / "a.tar", members))


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
)
def test_links_and_devices(tmp_path: Path, kind: bytes) -> None:
    write(tmp_path / "a.tar", samples(0, 2))
    with tarfile.open(tmp_path / "a.tar", "a") as archive:
        member = tarfile.TarInfo("0009.png")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(UserError, match=r"member 0009\.png is a link or a special file"):
        read(tmp_path / "a.tar")


@pytest.mark.parametrize(
    ("members", "options", "expected"),
    [
        ([("a.cls", b"1")], {}, r"sample a has cls, so 0 images"),
        ([("a.png", png(0)), ("a.jpg", png(0))], {}, r"sample a has png, jpg, so 2 images"),
        ([("a.png", png(0)), ("a.png", png(0))], {}, r"member a\.png occurs twice"),
        ([("a.png", png(0)), ("a.cls", b"cat")], {}, r"label of sample a is unreadable"),
        ([("a.png", png(0)), ("a.cls", b"99999")], {}, r"row 0: label 99999 is out of range"),
        ([("a.png", png(0)), ("a.json", b'{"label": 1, "y": 2}')], {}, r"label, y could all"),
        ([("a.png", png(0)), ("a.json", b'{"label": 1.5}')], {}, r"label is no integer"),
        (
            [("a.png", png(0)), ("a.json", b"[1]")],
            {"label_key": "z"},
            r"there is no z \(--label-key",
        ),
        ([("a.png", png(0)), ("a.json", b"[" * 99999)], {}, r"label of sample a is unreadable"),
        ([("a.png", png(0)), ("a.json", b" " * 2**21)], {}, r"more than 1048576 bytes"),
        ([("x/.png", png(0)), ("x/..png", b"")], {}, r"sample x/ has png, .png"),
        ([("a.png", b"text")], {}, r"a\.tar: a\.png is damaged"),
        (
            [("a.png", png(0)), ("a.cls", b"1")],
            {"label_key": "fine"},
            r"--label-key fine is a field of \.json, and there is only \.cls",
        ),
        ([], {}, r"holds no samples"),
    ],
)
def test_bad_samples(tmp_path: Path, members: list, options: dict, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        read(write(tmp_path / "a.tar", members), **options)


def test_one_of_several_images_and_a_named_label(tmp_path: Path) -> None:
    members = [("a.x.png", png(0)), ("a.y.png", png(1)), ("a.json", b'{"label": 1, "fine": 2}')]
    path = write(tmp_path / "a.tar", members)
    images, labels = read(path, image_key="y.png", label_key="fine")
    np.testing.assert_array_equal(images, IMAGES[1:2])
    assert labels.tolist() == [2]


def test_a_named_field_goes_before_cls(tmp_path: Path) -> None:
    members = [("a.png", png(0)), ("a.cls", b"1"), ("a.json", b'{"fine": 2}'), ("b.png", png(1))]
    path = write(tmp_path / "a.tar", members)
    assert read(path)[1].tolist() == [1, -1]
    assert read(path, label_key="cls")[1].tolist() == [1, -1]
    assert read(path, label_key="fine")[1].tolist() == [2, -1]


@pytest.mark.parametrize(
    ("members", "options", "expected"),
    [
        ([("a.cls", b"1")], {}, ".cls files"),
        ([("a.json", b'{"label": 1}')], {}, "field label of .json"),
        ([("a.json", b'{"fine": 1, "url": 2}')], {"label_key": "fine"}, "field fine of .json"),
        ([("a.json", b'{"fine": 1, "url": 2}')], {}, "(there is fine, url); --label-key names one"),
        ([("a.txt", b"1")], {}, "the first sample has no .cls and no .json"),
        ([("a.json", b"{")], {}, ".json files"),
    ],
)
def test_where_labels_come_from(
    tmp_path: Path, members: list, options: dict, expected: str
) -> None:
    path = write(tmp_path / "a.tar", [("a.png", png(0)), *members])
    source = open_source([path], ImportOptions(**options))
    assert source.labels_from.endswith(expected) and source.read_as == "encoded images, RGB"


@pytest.mark.parametrize("keep", [1, 300, 512, 700, 1024, 4096, 20 * 512 + 1, -10240, -10240 - 512])
def test_truncation_is_found_wherever_it_is(tmp_path: Path, keep: int) -> None:
    path = write(tmp_path / "a.tar", samples(0, 20))
    data = path.read_bytes()
    end = len(data.rstrip(b"\0")) // 512 * 512 + 512
    path.write_bytes(data[:keep] if keep >= 0 else data[: end + (0 if keep == -10240 else -512)])
    with pytest.raises(DamagedFile, match=r"a\.tar is truncated, or no tar file"):
        read(path)


def test_a_header_in_the_middle_that_is_garbage(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", samples(0, 20))
    data = bytearray(path.read_bytes())
    data[4 * 512 * 3 : 4 * 512 * 3 + 512] = b"x" * 512
    path.write_bytes(data)
    with pytest.raises(DamagedFile):
        read(path)


@pytest.mark.parametrize("count", [5, 600])
def test_the_files_of_a_sample_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """However many they are, and however small."""
    monkeypatch.setattr("ssat_ray.data.importers.webdataset.MAX_IMAGE_BYTES", 100_000)
    members = [(f"a.{i}", bytes(99_000 // count)) for i in range(count)]
    read(write(tmp_path / "a.tar", [("a.png", png(0)), *members[: count // 9]]))
    with pytest.raises(UserError, match=r"files of sample a have more than 100000 bytes"):
        read(write(tmp_path / "a.tar", [("a.png", png(0)), *members]))


def test_a_header_that_asks_for_all_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    member = tarfile.TarInfo("x")
    member.type, member.size = tarfile.XHDTYPE, 4 * 2**30
    path.write_bytes(member.tobuf() + bytes(4096))
    with pytest.raises(DamagedFile, match="4294967296 bytes; allowed"):
        read(path)
