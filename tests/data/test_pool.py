"""The pool format: round trips of any shape, checksums, and bytes that depend on the content alone."""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssat_ray.data.pool import (
    MANIFEST,
    Pool,
    Shard,
    encode_shard,
    image_hash,
    manifest,
    write_shard,
)
from ssat_ray.errors import UserError


def _shard(rows: int, shape: tuple[int, int, int], seed: int = 0, first: int = 0) -> Shard:
    rng = np.random.default_rng(seed)
    return Shard(
        np.arange(first, first + rows, dtype=np.int64),
        rng.integers(0, 256, (rows, *shape)).astype(np.uint8),
        rng.integers(-1, 10, rows).astype(np.int64),
    )


def _write(folder: Path, shards: list[Shard]) -> Pool:
    height, width, channels = shards[0].images.shape[1:]
    entries = [write_shard(folder, i, shard) for i, shard in enumerate(shards)]
    (folder / MANIFEST).write_text(manifest([entries], (channels, height, width), 10))
    return Pool(folder)


def _assert_equal(a: Shard, b: Shard) -> None:
    for name in ("ids", "images", "labels"):
        x, y = getattr(a, name), getattr(b, name)
        assert x.dtype == y.dtype and x.shape == y.shape
        np.testing.assert_array_equal(x, y)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 2**32 - 1),
)
def test_round_trip(tmp_path_factory, rows, height, width, channels, seed) -> None:
    shape, first, shards = (height, width, channels), 5, []
    for i, count in enumerate(rows):
        shards.append(_shard(count, shape, seed + i, first))
        first += count + 3
    pool = _write(tmp_path_factory.mktemp("pool"), shards)
    assert len(pool) == sum(rows) and len(pool.shards) == len(rows)
    for i, shard in enumerate(shards):
        _assert_equal(pool.read(i), shard)
        assert pool.shards[i]["first_id"] == shard.ids[0]
        assert pool.shards[i]["last_id"] == shard.ids[-1]
    assert [len(s.ids) for s in pool] == rows
    whole = pool.load()
    np.testing.assert_array_equal(whole.ids, np.concatenate([s.ids for s in shards]))
    np.testing.assert_array_equal(whole.images, np.concatenate([s.images for s in shards]))


def test_the_manifest_describes_what_is_on_disk(tmp_path: Path) -> None:
    pool = _write(tmp_path, [_shard(4, (2, 3, 1)), _shard(2, (2, 3, 1), 1, 4)])
    assert pool.manifest["shape"] == [2, 3, 1] and pool.manifest["num_classes"] == 10
    assert pool.num_bytes == sum(p.stat().st_size for p in tmp_path.glob("*.parquet"))
    for entry in pool.shards:
        data = (tmp_path / entry["file"]).read_bytes()
        ids = pq.read_table(io.BytesIO(data), columns=["id"])["id"].to_numpy()
        assert entry["sha256"] == hashlib.sha256(data).hexdigest() and entry["bytes"] == len(data)
        assert [entry["rows"], entry["first_id"], entry["last_id"]] == [len(ids), ids[0], ids[-1]]


def test_images_that_are_a_strided_view_are_written_in_order(tmp_path: Path) -> None:
    shard = _shard(6, (4, 4, 3))
    nchw = np.ascontiguousarray(shard.images.transpose(0, 3, 1, 2))
    view = Shard(shard.ids, nchw.transpose(0, 2, 3, 1), shard.labels)
    assert not view.images.flags.c_contiguous
    assert encode_shard(view) == encode_shard(shard)


def test_bytes_depend_on_the_content_alone() -> None:
    assert encode_shard(_shard(5, (3, 3, 1))) == encode_shard(_shard(5, (3, 3, 1)))
    assert encode_shard(_shard(5, (3, 3, 1))) != encode_shard(_shard(5, (3, 3, 1), seed=1))


def test_the_parquet_columns_are_the_documented_ones(tmp_path: Path) -> None:
    shard = _shard(3, (2, 2, 3))
    write_shard(tmp_path, 7, shard)
    table = pq.read_table(tmp_path / "shard-00007.parquet")
    types = {f.name: str(f.type) for f in table.schema}
    assert types == {"id": "int64", "image": "fixed_size_binary[12]", "label": "int16"}
    assert table["image"].to_pylist() == [image.tobytes() for image in shard.images]


def test_an_altered_shard_is_refused_and_the_others_are_read(tmp_path: Path) -> None:
    shards = [_shard(4, (3, 3, 1)), _shard(4, (3, 3, 1), 1, 4)]
    pool = _write(tmp_path, shards)
    path = tmp_path / pool.shards[1]["file"]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"shard-00001\.parquet was altered"):
        pool.read(1)
    _assert_equal(pool.read(0), shards[0])


def test_a_missing_shard_and_a_folder_that_is_no_pool(tmp_path: Path) -> None:
    pool = _write(tmp_path, [_shard(2, (2, 2, 1))])
    (tmp_path / pool.shards[0]["file"]).unlink()
    with pytest.raises(
        UserError, match=r"shard-00000\.parquet is listed in pool\.json and missing"
    ):
        pool.read(0)
    with pytest.raises(UserError, match=r"is no pool.*pool\.json"):
        Pool(tmp_path / "nowhere")


def test_a_row_count_that_differs_is_refused(tmp_path: Path) -> None:
    _write(tmp_path, [_shard(4, (2, 2, 1))])
    about = json.loads((tmp_path / MANIFEST).read_text())
    about["shards"][0]["rows"] = 5
    (tmp_path / MANIFEST).write_text(json.dumps(about))
    with pytest.raises(UserError, match=r"has 4 rows, pool\.json says 5"):
        Pool(tmp_path).read(0)


def test_a_damaged_manifest_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text('{"format": 1,')
    with pytest.raises(UserError, match=r"pool\.json"):
        Pool(tmp_path)


@given(st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=1, max_size=20))
def test_hashes_are_equal_exactly_where_bytes_are(rows: list[list[int]]) -> None:
    images = np.array(rows, np.uint8).reshape(-1, 2, 2, 1)
    hashes = image_hash(images)
    assert hashes.dtype == np.uint64 and hashes.shape == (len(rows),)
    same = (images[:, None] == images[None]).all((2, 3, 4))
    np.testing.assert_array_equal(hashes[:, None] == hashes[None], same)
    np.testing.assert_array_equal(image_hash(images[::-1]), hashes[::-1])
