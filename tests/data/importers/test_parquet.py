"""Parquet files of raw and encoded images against the arrays in them."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssat_ray.data.importers.base import (
    BLOCK_BYTES,
    MAX_IMAGE_BYTES,
    DamagedFile,
    ImportOptions,
    open_source,
)
from ssat_ray.errors import UserError
from tests.data.importers.generated import encode

IMAGES = np.random.default_rng(0).integers(0, 256, (60, 5, 4, 3), dtype=np.uint8)
LABELS = [None if i % 13 == 0 else i % 7 for i in range(60)]
FOUND = np.array([-1 if label is None else label for label in LABELS])
PNGS = [encode(image) for image in IMAGES]
RAW = [image.tobytes() for image in IMAGES]
KINDS: dict[str, Any] = {
    "fixed": pa.array(RAW, pa.binary(60)),
    "raw": pa.array(RAW, pa.binary()),
    "png": pa.array(PNGS, pa.binary()),
    "large": pa.array(PNGS, pa.large_binary()),
    "struct": pa.array(
        [{"bytes": p, "path": None} for p in PNGS],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    ),
}


def options(kind: str) -> ImportOptions:
    return ImportOptions(shape=(5, 4, 3) if kind in ("fixed", "raw") else None)


def read(path: Path, given: ImportOptions, start: int = 0) -> tuple[np.ndarray, np.ndarray]:
    blocks = list(open_source([path], given).blocks(start))
    return np.concatenate([b.images for b in blocks]), np.concatenate([b.labels for b in blocks])


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(list(KINDS)),
    group=st.integers(1, 70),
    batch=st.integers(1, 70),
    start=st.integers(0, 59),
    codec=st.sampled_from(["snappy", "zstd", "none"]),
    label=st.sampled_from([pa.int64(), pa.int16(), pa.uint8(), None]),
)
def test_every_kind_of_column(tmp_path_factory, kind, group, batch, start, codec, label) -> None:
    path = tmp_path_factory.mktemp("parquet") / "a.parquet"
    columns = {"id": pa.array(range(60)), "image": KINDS[kind]}
    if label is not None:
        columns["label"] = pa.array(LABELS, label)
    pq.write_table(pa.table(columns), path, row_group_size=group, compression=codec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ssat_ray.data.importers.parquet.ENCODED_ROWS", 1 + group % 9)
        patch.setattr("ssat_ray.data.importers.encoded.BLOCK_BYTES", batch * 60)
        patch.setattr("ssat_ray.data.importers.parquet.BLOCK_BYTES", batch * 60)
        images, labels = read(path, options(kind), start)
    np.testing.assert_array_equal(images, IMAGES[start:])
    np.testing.assert_array_equal(labels, FOUND[start:] if label is not None else -1)


def test_what_is_said_of_images_and_labels(tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet", image=KINDS["png"], label=pa.array(LABELS))
    source = open_source([path], ImportOptions())
    assert source.read_as == "encoded images, RGB" and source.labels_from == "column label"
    path = table(tmp_path / "b.parquet", image=KINDS["raw"], kind=pa.array(LABELS))
    source = open_source([path], options("raw"))
    assert source.read_as == "raw bytes HWC"
    assert source.labels_from.endswith("(there is kind); --label-key names one")


def test_blocks_of_encoded_images_are_bounded_by_their_bytes(tmp_path: Path) -> None:
    """256 x 256 x 3: 1024 rows at a time would be 192 MiB."""
    image = np.random.default_rng(1).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    pngs = pa.array([encode(image)] * 300)
    pq.write_table(pa.table({"image": pngs}), tmp_path / "a.parquet")
    source = open_source([tmp_path / "a.parquet"], ImportOptions())
    tracemalloc.start()
    try:
        rows = 0
        for block in source.blocks():
            assert block.images.nbytes <= BLOCK_BYTES + image.nbytes
            rows += len(block.labels)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert rows == 300 and peak < 6 * BLOCK_BYTES


def table(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


MIXED = [*PNGS[:10], encode(IMAGES[0, :4])]


@pytest.mark.parametrize(
    ("columns", "given", "expected"),
    [
        ({"pictures": KINDS["png"]}, {}, r"no column called image.*found pictures"),
        ({"image": KINDS["png"], "img": KINDS["png"]}, {}, r"image, img could all be meant"),
        ({"image": KINDS["fixed"]}, {}, r"60 raw bytes an image; --shape"),
        (
            {"image": KINDS["fixed"]},
            {"shape": (5, 5, 3)},
            r"row 0 has 60 bytes, --shape asks for 75",
        ),
        ({"image": KINDS["fixed"]}, {"shape": (5, 6, 2)}, r"2 channels; allowed are 1 and 3"),
        ({"image": pa.array(range(60))}, {}, r"the image column is int64"),
        ({"image": KINDS["png"], "label": pa.array(["a"] * 60)}, {}, r"column label is string"),
        ({"image": KINDS["png"], "label": pa.array([40000] * 60)}, {}, r"row 0: label 40000"),
        ({"image": pa.array([*PNGS[:7], None])}, {}, r"row 7 has no image"),
        ({"image": pa.array([{"bytes": PNGS[0]}, {"bytes": None}])}, {}, r"row 1 has no image"),
        ({"image": pa.array([{"bytes": PNGS[0]}, None])}, {}, r"row 1 has no image"),
        ({"image": pa.array(MIXED)}, {}, r"row 10 is 4x4, .*row 0 is 5x4"),
        (
            {"image": pa.array([PNGS[0], b"text"])},
            {},
            r"row 1 is damaged, or no image that is read \(PNG, [^<>]*\): [^<>]*Raw pixels\? --shape HxWxC",
        ),
        ({"image": KINDS["raw"]}, {}, r"row 0 is damaged[^<>]*Raw pixels\? --shape HxWxC says"),
        (
            {"image": KINDS["raw"]},
            {"shape": (5, 4, 3), "channels": 3},
            r"--size and --channels are for encoded images, --shape is for raw bytes",
        ),
        ({"image": pa.array([], pa.binary())}, {}, r"has no rows"),
        (
            {"image": pa.array([PNGS[0], bytes(MAX_IMAGE_BYTES + 1)])},
            {},
            r"row 1: 67108865 bytes in column image are more than 67108864",
        ),
    ],
)
def test_what_is_refused(tmp_path: Path, columns: dict, given: dict, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        read(table(tmp_path / "a.parquet", **columns), ImportOptions(**given))


def test_truncated_and_corrupt_files(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": KINDS["fixed"]}), path, write_page_checksum=True)
    data = path.read_bytes()
    path.write_bytes(data[:-100])
    with pytest.raises(DamagedFile, match=r"a\.parquet is truncated, or no Parquet file"):
        read(path, options("fixed"))
    changed = bytearray(data)
    changed[1000] ^= 1
    path.write_bytes(changed)
    with pytest.raises(DamagedFile, match=r"a\.parquet is corrupt; row 0 was reached"):
        read(path, options("fixed"))
