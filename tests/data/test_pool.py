"""The pool format: round trips of any shape, checksums, and bytes that depend on the content alone."""

import hashlib
import io
import itertools
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssat_ray.data.pool import MANIFEST, Pool, manifest
from ssat_ray.data.shard import Shard, encode_shard, image_hash, write_shard, write_shards
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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"format": 1,', r"pool\.json is damaged: Expecting"),
        ("\x00", r"pool\.json is damaged: Expecting"),
        ("[" * 100_000, r"pool\.json is damaged: .*recursion"),
        ("[]", r"pool\.json is damaged: it: input should be a valid dict"),
        ('{"format": 1}', r"pool\.json has format 1, this release reads 2"),
        ('{"format": 2}', r"pool\.json is damaged: shape: field required"),
    ],
)
def test_a_damaged_manifest_is_a_user_error(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(UserError, match=expected):
        Pool(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("shape", [2, 2], r"shape: list should have at least 3"),
        ("rows", "4", r"rows: input should be a valid integer"),
        ("shards", [], r"shards: list should have at least 1"),
        ("shards", [{}], r"shards\.0\.file: field required"),
        ("generations", [], r"its generations have other shards than it lists"),
        ("source", [{"options": {}}], r"source\.0\.files: field required"),
        ("location", 3, r"location: input should be a valid string"),
    ],
)
def test_fields_of_another_kind(tmp_path: Path, key: str, value: object, expected: str) -> None:
    _write(tmp_path, [_shard(4, (2, 2, 1))])
    about = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps({**about, key: value}))
    with pytest.raises(UserError, match=rf"pool\.json is damaged: {expected}"):
        Pool(tmp_path)


def test_a_location_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for location in (tmp_path / "file", tmp_path / "file" / "pool"):
        with pytest.raises(UserError, match=r"file.* is no pool: it is no folder"):
            Pool(location)
    (tmp_path / MANIFEST).mkdir()
    with pytest.raises(
        UserError, match=r"pool\.json cannot be read: .*is a directory\. Once it can"
    ):
        Pool(tmp_path)


@given(st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=1, max_size=20))
def test_hashes_are_equal_exactly_where_bytes_are(rows: list[list[int]]) -> None:
    images = np.array(rows, np.uint8).reshape(-1, 2, 2, 1)
    hashes = image_hash(images)
    assert hashes.dtype == np.uint64 and hashes.shape == (len(rows),)
    same = (images[:, None] == images[None]).all((2, 3, 4))
    np.testing.assert_array_equal(hashes[:, None] == hashes[None], same)
    np.testing.assert_array_equal(image_hash(images[::-1]), hashes[::-1])


def test_generations_keep_their_digests_when_the_pool_grows(tmp_path: Path) -> None:
    shape = (4, 5, 1)
    shards = [_shard(7, shape, seed=i, first=10 * i) for i in range(3)]
    entries = [write_shard(tmp_path, i, shard) for i, shard in enumerate(shards)]
    (tmp_path / MANIFEST).write_text(manifest([entries[:2]], (1, 4, 5), 10))
    before = Pool(tmp_path)
    (tmp_path / MANIFEST).write_text(manifest([entries[:2], entries[2:]], (1, 4, 5), 10))
    after = Pool(tmp_path)
    digests = [generation["digest"] for generation in after.manifest["generations"]]
    assert digests[0] == before.manifest["generations"][0]["digest"] != digests[1]
    assert [len(shards) for shards in after.generations] == [2, 1]
    assert (len(before), len(after)) == (14, 21)
    assert after.image_shape == (1, 4, 5) and after.num_classes == 10


def test_a_reference_reads_the_shards_of_another_folder(tmp_path: Path) -> None:
    pool = _write(tmp_path / "there", [_shard(5, (2, 2, 3)), _shard(4, (2, 2, 3), first=9)])
    (tmp_path / "here").mkdir()
    text = manifest([pool.shards[1:]], (3, 2, 2), 10, location=str(tmp_path / "there"))
    (tmp_path / "here" / MANIFEST).write_text(text)
    found = Pool(tmp_path / "here")
    assert found.is_reference and not pool.is_reference
    _assert_equal(found.load(), pool.read(1))


def test_shards_whose_ids_do_not_follow_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ids of shard-00001.parquet do not follow"):
        _write(tmp_path, [_shard(5, (2, 2, 1)), _shard(5, (2, 2, 1), first=4)])
    with pytest.raises(ValueError, match="ascend"):
        write_shard(tmp_path, 0, _shard(5, (2, 2, 1))[np.array([1, 0])])


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    rows=st.integers(1, 7),
)
def test_a_stream_is_cut_into_shards_of_one_size(tmp_path_factory, sizes, rows) -> None:
    folder, whole = tmp_path_factory.mktemp("stream"), _shard(sum(sizes), (2, 3, 1))
    starts = np.cumsum([0, *sizes])
    pieces = (whole[a:b] for a, b in itertools.pairwise(starts))
    entries = write_shards(folder, pieces, rows)
    found = [entry["rows"] for entry in entries]
    assert sum(found) == sum(sizes) and all(n == rows for n in found[:-1])
    if found:
        (folder / MANIFEST).write_text(manifest([entries], (1, 2, 3), 10))
        _assert_equal(Pool(folder).load(), whole)


def test_ids_and_labels_without_the_images(tmp_path: Path) -> None:
    shard = _shard(6, (2, 2, 1), first=3)
    ids, labels = _write(tmp_path, [shard]).read_ids(0)
    assert np.array_equal(ids, shard.ids) and np.array_equal(labels, shard.labels)


def test_shards_that_another_writer_made(tmp_path: Path) -> None:
    """Several row groups, and wider labels."""
    shard = _shard(6, (2, 2, 1), first=3)
    pool = _write(tmp_path, [shard])
    path = Path(pool.shard_path(0))
    table = pq.read_table(path).set_column(2, "label", pa.array(shard.labels, pa.int32()))
    pq.write_table(table, path, row_group_size=4)
    _note_checksum(pool)
    pool = Pool(tmp_path)
    _assert_equal(pool.read(0), shard)
    assert np.array_equal(pool.read_ids(0)[1], shard.labels)


def _note_checksum(pool: Pool) -> None:
    about = pool.manifest
    data = Path(pool.shard_path(0)).read_bytes()
    about["shards"][0]["sha256"] = hashlib.sha256(data).hexdigest()
    (Path(pool.folder.uri) / MANIFEST).write_text(json.dumps(about))


def test_a_shard_of_other_columns_is_refused(tmp_path: Path) -> None:
    pool = _write(tmp_path, [_shard(6, (2, 2, 1))])
    path, rows = Path(pool.shard_path(0)), range(6)
    for columns in (
        {"id": rows},
        {"id": rows, "image": [b"123"] * 6, "label": rows},
        {"id": rows, "image": [b"1234"] * 6, "label": ["cat"] * 6},
        {"id": rows, "image": [b"1234"] * 6, "label": [None, *range(5)]},
        {"id": [], "image": [], "label": []},
    ):
        pq.write_table(pa.table(columns), path)
        _note_checksum(pool)
        with pytest.raises(UserError, match=r"shard-00000\.parquet"):
            Pool(tmp_path).read(0)


def test_a_flipped_bit_is_told_with_the_name_of_the_file(tmp_path: Path) -> None:
    """Ids are read without a checksum: what Arrow raises then names no file."""
    pool = _write(tmp_path, [_shard(30, (2, 2, 1))])
    path, rng = Path(pool.shard_path(0)), np.random.default_rng(0)
    good, refused = path.read_bytes(), 0
    for _ in range(300):
        bad = bytearray(good)
        bad[rng.integers(len(good))] ^= 1 << rng.integers(8)
        path.write_bytes(bad)
        try:
            pool.read_ids(0)
        except UserError as error:
            refused += str(path) in str(error)
        with pytest.raises(UserError, match=r"shard-00000\.parquet was altered"):
            pool.read(0)
    assert refused > 50


def test_different_images_have_different_hashes_and_position_counts() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 2, (20_000, 8, 8, 1), dtype=np.uint8)
    distinct = len(np.unique(images.reshape(len(images), -1), axis=0))
    assert len(np.unique(image_hash(images))) == distinct
    swapped = images[:1].reshape(1, 8, 8, 1)[:, ::-1]
    assert image_hash(swapped) != image_hash(images[:1])
