"""The score table: round trips, chunks of bounded size, bytes, and damaged files that are named."""

import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from ssat_ray.errors import UserError
from ssat_ray.selection import table
from ssat_ray.selection.choose import Ranking, choose
from ssat_ray.selection.table import ScoreTable, encode, score_file, score_files, shard_of


def columns(num_rows, first_id=0, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "id": first_id + np.cumsum(rng.integers(1, 4, num_rows)),
        "label": rng.integers(-1, 10, num_rows),
        "confidence": rng.random(num_rows),
        "cluster": rng.integers(0, 10_000, num_rows).astype(np.int32),
        "score": rng.gamma(2, 1, num_rows).astype(np.float32),
        "hash": rng.integers(0, 2**64, num_rows, dtype=np.uint64),
    }


def written(folder, *parts):
    folder.mkdir(parents=True, exist_ok=True)
    for i, part in enumerate(parts):
        (folder / score_file(i)).write_bytes(encode(part))
    return score_files(folder)


def published(folder, *parts):
    """The same as an artefact, with its record."""
    files = written(folder, *parts)
    rows = sum(len(part["id"]) for part in parts)
    (folder / "stage.json").write_text(json.dumps({"rows": rows}))
    return files


def joined(chunks):
    parts = list(chunks)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def test_columns_come_back_in_order_with_the_types_of_the_table(tmp_path):
    parts = [columns(500), columns(0), columns(300, 2000, 1)]
    found = ScoreTable(written(tmp_path, *parts))
    assert found.num_rows == 800
    back = joined(found.read(list(parts[0])))
    types = {
        "id": np.int64, "label": np.int16, "confidence": np.float32, "cluster": np.int32,
        "score": np.float32, "hash": np.uint64,
    }  # fmt: skip
    assert {name: values.dtype for name, values in back.items()} == types
    for name, dtype in types.items():
        expected = np.concatenate([part[name] for part in parts]).astype(dtype)
        np.testing.assert_array_equal(back[name], expected)


def test_only_the_columns_asked_for_are_read(tmp_path):
    found = ScoreTable(written(tmp_path, columns(10)))
    assert [list(chunk) for chunk in found.read(["score", "id"])] == [["score", "id"]]


def test_chunks_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "CHUNK_ROWS", 64)
    found = ScoreTable(written(tmp_path, columns(150), columns(10, 1000)))
    assert [len(chunk["id"]) for chunk in found.read(["id"])] == [64, 64, 22, 10]


def test_folders_are_read_one_after_another(tmp_path):
    published(tmp_path / "new", columns(20, 1000, 1))
    published(tmp_path / "old", columns(20), columns(20, 500, 2))
    found = ScoreTable.of_folders([tmp_path / "old", tmp_path / "new"])
    (ids,) = joined(found.read(["id"])).values()
    assert len(ids) == found.num_rows == 60
    assert (np.diff(ids) > 0).all()


def test_files_are_read_by_the_number_of_their_shard(tmp_path):
    published(tmp_path, columns(20), columns(20, 500, 2))
    for i in (1, 0):
        (tmp_path / score_file(i)).rename(tmp_path / score_file(99_999 + i))
    (tmp_path / "scores-old.parquet").write_bytes(b"")
    found = ScoreTable.of_folders([tmp_path])
    assert [shard_of(path) for path in found.files] == [99_999, 100_000]
    (ids,) = joined(found.read(["id"])).values()
    assert len(ids) == 40 and (np.diff(ids) > 0).all()


@pytest.mark.parametrize(("change", "rows"), [("missing", 300), ("left over", 1200), ("none", 800)])
def test_files_that_have_not_the_rows_of_the_record(tmp_path, change, rows):
    published(tmp_path / "first", columns(10))
    folder = tmp_path / "second"
    last = published(folder, columns(300), columns(500, 1000))[1]
    if change == "missing":
        last.unlink()
    if change == "left over":
        (folder / score_file(7)).write_bytes(encode(columns(400, 10**4)))
    if change == "none":
        (folder / "stage.json").unlink()
    said = rf"{folder}: the score files have {rows:,} rows .* remove this folder and run again"
    with pytest.raises(UserError, match=said):
        ScoreTable.of_folders([tmp_path / "first", folder])


def test_equal_columns_give_equal_and_small_files():
    part = columns(200_000)
    data = encode(part)
    assert data == encode({name: values.copy() for name, values in part.items()})
    # Dense ids take 3 bits, labels 4, clusters 14; the rest is 16 bytes.
    assert len(data) < 200_000 * (16 + 21 / 8 + 0.5)


def test_ids_are_delta_encoded_and_nothing_is_nullable():
    metadata = pq.ParquetFile(io.BytesIO(encode(columns(1000)))).metadata
    assert "DELTA_BINARY_PACKED" in metadata.row_group(0).column(0).encodings
    assert {metadata.schema.column(i).max_definition_level for i in range(6)} == {0}


@pytest.mark.parametrize("damage", ["cut", "empty", "footer", "missing"])
def test_a_damaged_file_is_named_when_opened(tmp_path, damage):
    first, second = written(tmp_path, columns(100), columns(100, 1000))
    data = second.read_bytes()
    footer = int.from_bytes(data[-8:-4], "little")
    bad = {
        "cut": data[:-20],
        "empty": b"",
        "footer": data[: -8 - footer] + bytes(footer) + data[-8:],
    }
    second.unlink()
    if damage in bad:
        second.write_bytes(bad[damage])
    with pytest.raises(UserError, match=r"scores-00001\.parquet of the score table is"):
        ScoreTable([first, second])


@pytest.mark.parametrize("place", [0.02, 0.3, 0.6, 0.9])
def test_an_altered_byte_of_a_column_is_found_and_the_file_named(tmp_path, place):
    first, second = written(tmp_path, columns(10_000), columns(10_000, 10**6))
    data = bytearray(second.read_bytes())
    data[int(place * len(data))] ^= 4
    second.write_bytes(data)
    found = ScoreTable([first, second])
    chunks = found.read(list(columns(0)))
    next(chunks)
    with pytest.raises(
        UserError, match=r"scores-00001\.parquet .* is damaged .* remove this folder"
    ):
        next(chunks)


def test_a_missing_column_is_named_with_those_there(tmp_path):
    found = ScoreTable(written(tmp_path, {"id": np.arange(3), "score": np.arange(3.0)}))
    with pytest.raises(UserError, match=r"scores-00000\.parquet has no column d1, d2; it has id"):
        next(found.read(["id", "d2", "d1"]))


def test_choose_reads_a_table(tmp_path):
    parts = [columns(3000), columns(2000, 10**5, 1)]
    found = ScoreTable(written(tmp_path, *parts))
    choice = choose(
        found.read, num_rows=found.num_rows, ratio=0.1, boundary_fraction=1, seed=0,
        ranking=Ranking(),
    )  # fmt: skip
    ids, score = (np.concatenate([part[name] for part in parts]) for name in ("id", "score"))
    assert choice.ids.tolist() == sorted(ids[np.argsort(score)[:500]].tolist())
