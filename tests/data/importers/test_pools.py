"""A pool appended to another one: rows from any start, new ids, names and shapes checked, damage named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ssat_ray.data.importers.base import ImportOptions, open_source
from ssat_ray.data.ingest import append_pool, copy_pool, import_pool, verify_pool
from ssat_ray.data.pool import Pool
from ssat_ray.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 4, 5, 3), dtype=np.uint8)
LABELS = np.random.default_rng(1).integers(-1, 3, 40)


def make(folder: Path, a: int, b: int, classes: list[str] | None = None, rows: int = 6) -> Pool:
    path = folder / f"{a}-{b}.npz"
    np.savez(path, image=IMAGES[a:b], label=LABELS[a:b])
    return import_pool(
        [path], str(folder / f"pool-{a}"), num_classes=3, classes=classes, shard_rows=rows
    )[0]


@pytest.mark.parametrize("start", [0, 1, 5, 6, 19, 20])
def test_rows_from_any_start(tmp_path: Path, start: int) -> None:
    make(tmp_path, 0, 20)
    source = open_source([tmp_path / "pool-0"], ImportOptions())
    blocks = list(source.blocks(start))
    images = np.concatenate([b.images for b in blocks] or [IMAGES[:0]])
    np.testing.assert_array_equal(images, IMAGES[start:20])
    labels = [int(label) for block in blocks for label in block.labels]
    assert labels == LABELS[start:20].tolist()
    assert source.rows == 20 and source.shape == (4, 5, 3) and source.read_as == "a pool"


def test_ids_are_given_anew_and_a_pool_is_taken_once(tmp_path: Path) -> None:
    make(tmp_path, 0, 20)
    make(tmp_path, 20, 40)
    target, other = str(tmp_path / "pool-0"), tmp_path / "pool-20"
    pool, written = append_pool([other], target)
    assert written and len(pool.generations) == 2 and verify_pool(pool) == []
    whole = pool.load()
    np.testing.assert_array_equal(whole.ids, np.arange(40))
    np.testing.assert_array_equal(whole.images, IMAGES)
    np.testing.assert_array_equal(whole.labels, LABELS)
    copy_pool(str(other), str(tmp_path / "moved"), shard_rows=6)
    for same in (other, tmp_path / "moved"):
        assert append_pool([same], target)[1] is False
    assert len(append_pool([other], target, again=True)[0]) == 60


def test_what_is_refused(tmp_path: Path) -> None:
    pool = make(tmp_path, 0, 20)
    np.savez(tmp_path / "b.npz", image=IMAGES[:, :4, :4], label=LABELS + 1)
    small = import_pool([tmp_path / "b.npz"], str(tmp_path / "small"))[0]
    many = tmp_path / "c.npz"
    np.savez(many, image=IMAGES, label=LABELS + 1)
    import_pool([many], str(tmp_path / "many"))
    target = str(tmp_path / "pool-0")
    row = int((LABELS == 2).argmax())
    for path, expected in (
        (tmp_path / "pool-0", r"pool-0 is the pool itself"),
        (tmp_path / "small", r"small has images of shape \(4, 4, 3\) .*of \(4, 5, 3\)"),
        (tmp_path / "many", rf"many row {row}: label 3 is no class of a pool with 3 classes"),
    ):
        with pytest.raises(UserError, match=expected):
            append_pool([path], target)
    assert Pool(target).manifest == pool.manifest
    with pytest.raises(UserError, match=r"small is a pool already; `ssat pool copy`.*append"):
        import_pool([tmp_path / "small"], str(tmp_path / "new"))
    (tmp_path / "small" / small.shards[0]["file"]).unlink()
    with pytest.raises(UserError, match=r"small is incomplete: 1 of its 1 shards"):
        open_source([tmp_path / "small"], ImportOptions())


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    make(tmp_path, 0, 20, ["cat", "dog", "eel"])
    make(tmp_path, 20, 40, ["eel", "cat", "dog"])
    pool, _ = append_pool([tmp_path / "pool-20"], str(tmp_path / "pool-0"))
    numbers = {-1: -1, 0: 2, 1: 0, 2: 1}
    expected = [numbers[label] for label in LABELS[20:].tolist()]
    assert pool.load().labels[20:].tolist() == expected


def test_an_altered_shard_costs_none_of_those_before_it(tmp_path: Path) -> None:
    make(tmp_path, 0, 20)
    make(tmp_path, 20, 40)
    path = tmp_path / "pool-20" / "shard-00002.parquet"
    good = path.read_bytes()
    path.write_bytes(bytes([*good[:-100], good[-100] ^ 1, *good[-99:]]))
    target = str(tmp_path / "pool-0")
    with pytest.raises(UserError, match=r"pool-20/shard-00002\.parquet was altered"):
        append_pool([tmp_path / "pool-20"], target, shard_rows=6)
    kept = (tmp_path / "pool-0" / "shard-00005.parquet").stat().st_mtime_ns
    path.write_bytes(good)
    pool, _ = append_pool([tmp_path / "pool-20"], target, shard_rows=6)
    np.testing.assert_array_equal(pool.load().images, IMAGES)
    assert (tmp_path / "pool-0" / "shard-00005.parquet").stat().st_mtime_ns == kept
