"""Bad shards: tried again, then an error that names the file, or quarantine that says so."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from ssat_ray.data.pool import MANIFEST, Pool, manifest
from ssat_ray.data.shard import Shard, write_shard
from ssat_ray.errors import RunFailed, UserError
from ssat_ray.stages.base import Task
from ssat_ray.stages.parts import NOTES
from ssat_ray.stages.select import TABLE
from ssat_ray.stages.shards import Pools, left_out_warnings
from ssat_ray.store import Job

ROWS = 5


def make_pool(folder: Path, first_id: int = 0, num_shards: int = 3) -> Path:
    rng, entries = np.random.default_rng(first_id), []
    for i in range(num_shards):
        ids = np.arange(ROWS) + first_id + i * ROWS
        images = rng.integers(0, 256, (ROWS, 4, 4, 1), dtype=np.uint8)
        entries.append(write_shard(folder, i, Shard(ids, images, ids % 10)))
    (folder / MANIFEST).write_text(manifest([entries], (1, 4, 4), 10))
    return folder


def pools_of(on_bad_shard: str, **folders: Path) -> Pools:
    """The pools of a job whose inputs are these folders."""
    inputs = {name: Job("pool", 1, {"name": name}, {}) for name in folders}
    job = Job("score", 2, {"seed": 0}, {"on_bad_shard": on_bad_shard}, inputs)
    return Pools(Task(job, Path("unused"), dict(folders), Path("unused")))


def alter(path: Path) -> None:
    """Change one byte in the middle: an image's, in a shard of some hundred."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def shard_file(pool: Path, index: int) -> Path:
    return Path(Pool(pool).shard_path(index))


def test_every_image_is_in_a_part_or_left_out(tmp_path: Path) -> None:
    pools = pools_of("quarantine", pool=make_pool(tmp_path))
    bad = {"file": "shard-00001.parquet", "rows": ROWS, "reason": "altered"}
    whole = {"rows": ROWS}
    assert pools.account("score", [whole] * 3) == {"bytes_read": pools.num_bytes}
    record = pools.account("score", [whole, {"rows": 0, "quarantined": bad}, whole])
    assert record["quarantined"] == [bad]
    for notes in ([whole] * 2, [whole, whole, {"rows": 0}]):
        with pytest.raises(
            RunFailed, match=r"score: .* 10 of 15 images .*shard-00002.parquet \(0 r"
        ):
            pools.account("score", notes)
    with pytest.raises(RunFailed, match=r"shard-00000.parquet \(6 rows\), .*1.parquet \(4 rows\)"):
        pools.account("score", [{"rows": 6}, {"rows": 4}, whole])


def test_what_was_left_out_is_said_of_every_job() -> None:
    bad = {"file": "a", "rows": 1_500, "reason": "altered"}
    found = left_out_warnings(
        [("score", {"quarantined": [bad]}), ("select", {}), ("x", {"quarantined": [bad] * 2})]
    )
    assert found == [
        "score: 1 shard with 1,500 images could not be read, left out",
        "x: 2 shards with 3,000 images could not be read, left out",
    ]


def test_shards_are_numbered_through_the_generations_in_order(tmp_path: Path) -> None:
    names = ["pool", *(f"pool.{i}" for i in range(1, 11))]
    folders = {name: make_pool(tmp_path / name, 100 * i, 2) for i, name in enumerate(names)}
    pools = pools_of("fail", **dict(sorted(folders.items())))
    assert (len(pools), pools.num_images) == (22, 22 * ROWS)
    assert pools.num_bytes == sum(file.stat().st_size for file in tmp_path.rglob("*.parquet"))
    for part in range(22):
        shard, note = pools.read(part, retries=0)
        assert shard is not None and note == {}
        assert (
            shard.ids[0] == 100 * (part // 2) + ROWS * (part % 2) == pools.entry(part)["first_id"]
        )


@pytest.mark.parametrize(
    ("harm", "reason"),
    [(Path.unlink, "is listed in pool.json and missing"), (alter, "was altered")],
    ids=["missing", "altered"],
)
def test_a_bad_shard_ends_the_stage_and_is_named(harm: Any, reason: str, tmp_path: Path) -> None:
    pools = pools_of("fail", pool=make_pool(tmp_path))
    bad = shard_file(tmp_path, 1)
    harm(bad)
    with pytest.raises(UserError, match=reason) as caught:
        pools.read(1, retries=1)
    message = str(caught.value)
    assert message.count(str(bad)) == 1
    assert "Tried 2 times" in message
    assert "pool.on_bad_shard=quarantine" in message
    assert pools.read(2, retries=0)[0] is not None


@pytest.mark.parametrize("harm", [Path.unlink, alter], ids=["missing", "altered"])
def test_quarantine_leaves_the_shard_out_and_says_why(harm: Any, tmp_path: Path) -> None:
    pools = pools_of("quarantine", pool=make_pool(tmp_path))
    bad = shard_file(tmp_path, 1)
    harm(bad)
    shard, note = pools.read(1, retries=0)
    assert shard is None
    left_out = note["quarantined"]
    assert (left_out["file"], left_out["rows"]) == (bad.name, ROWS)
    assert str(bad) in left_out["reason"]
    assert pools.read(0, retries=0)[1] == {}


def test_a_shard_that_comes_back_is_read(tmp_path: Path) -> None:
    """A mount that is away for a moment: the second or third attempt finds the file."""
    pools = pools_of("quarantine", pool=make_pool(tmp_path / "pool"))
    file, away = shard_file(tmp_path / "pool", 0), tmp_path / "away"
    file.rename(away)
    timer = threading.Timer(0.1, lambda: away.rename(file))
    timer.start()
    shard, note = pools.read(0, retries=4)
    timer.join()
    assert note == {}
    assert shard is not None and shard.ids.tolist() == list(range(ROWS))


def test_ids_of_a_missing_or_damaged_shard(tmp_path: Path) -> None:
    pool = make_pool(tmp_path)
    shard_file(pool, 0).unlink()
    shard_file(pool, 1).write_bytes(b"no Parquet file")
    strict, lenient = pools_of("fail", pool=pool), pools_of("quarantine", pool=pool)
    for part in (0, 1):
        with pytest.raises(UserError, match=shard_file(pool, part).name):
            strict.read_ids(part, retries=0)
        found, note = lenient.read_ids(part, retries=0)
        assert found is None and note["quarantined"]["rows"] == ROWS
    found, note = lenient.read_ids(2, retries=0)
    assert found is not None and found[0].tolist() == list(range(2 * ROWS, 3 * ROWS))


SETTINGS = (
    "cluster.sample_rows=1000",
    "cluster.refine_rows=4000",
    "cluster.restarts=1",
    "runtime.read_retries=0",
)


@pytest.mark.ray
def test_stages_go_on_without_quarantined_shards(
    selections: Any, ray_here: None, tmp_path: Path
) -> None:
    pool = selections.pool(tmp_path / "pool", 5_000, 500)
    shard_file(pool, 3).unlink()
    alter(shard_file(pool, 7))
    rows = ["random", "lcs-km"]
    options = ("pool.on_bad_shard=quarantine", f"rows=[{', '.join(rows)}]")
    selection = selections.selection(tmp_path / "store", pool, *SETTINGS, *options)
    selection.execute()
    bad = {*range(1500, 2000), *range(3500, 4000)}
    for stage in ("cluster", "score"):
        record = selection.record("lcs-km", stage)
        left_out = record["quarantined"]
        assert [shard["file"] for shard in left_out] == [
            "shard-00003.parquet",
            "shard-00007.parquet",
        ]
        assert record["rows"] == 4_000 == 5_000 - sum(shard["rows"] for shard in left_out)
    files = sorted(selection.folder("lcs-km", "score").glob("scores-*.parquet"))
    scored = np.concatenate([pq.read_table(file)["id"] for file in files])
    assert set(scored.tolist()) == set(range(5_000)) - bad
    for row in rows:
        chosen = pq.read_table(selection.folder(row, "select") / TABLE)["id"].to_pylist()
        assert len(chosen) == selection.record(row, "select")["rows"] == 400
        assert not set(chosen) & bad


@pytest.mark.ray
@pytest.mark.slow
def test_a_bad_shard_fails_the_run_and_keeps_finished_parts(
    selections: Any, ray_here: None, tmp_path: Path
) -> None:
    pool = selections.pool(tmp_path / "pool", 5_000, 500)
    bad, away = shard_file(pool, 9), tmp_path / "away"
    bad.rename(away)
    selection = selections.selection(tmp_path / "store", pool, *SETTINGS, "rows=[lcs-km]")
    with pytest.raises(UserError, match="missing") as caught:
        selection.execute()
    assert str(bad) in str(caught.value)
    assert selection.record("lcs-km", "cluster") is None
    notes = (selection.folder("lcs-km", "cluster") / NOTES).glob("[0-9]*.json")
    finished = [json.loads(note.read_text()) for note in notes]
    assert 1 <= len(finished) <= 9
    away.rename(bad)
    selection.execute()
    record = selection.record("lcs-km", "select")
    assert record is not None and record["rows"] == 500
    done_before = {note["pid"] for note in finished}
    assert done_before <= set(selection.record("lcs-km", "cluster")["actor_pids"])
