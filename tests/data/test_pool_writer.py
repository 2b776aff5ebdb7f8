"""What is kept, and what is said, when a source or the origin of a copy cannot be read."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssat_ray.data.folder import Folder
from ssat_ray.data.importers.base import DamagedFile, ImportOptions
from ssat_ray.data.ingest import copy_pool, import_pool, verify_pool
from ssat_ray.data.pool import Pool
from ssat_ray.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (100, 8, 8, 1), dtype=np.uint8)
LABELS = np.arange(100) % 3


@pytest.fixture
def npy(tmp_path: Path) -> Path:
    np.save(tmp_path / "a.npy", IMAGES)
    np.save(tmp_path / "l.npy", LABELS)
    return tmp_path / "a.npy"


class Stale:
    """A file whose server is gone after some bytes."""

    def __init__(self, path: Path, good: int) -> None:
        self._file, self._good = path.open("rb"), good

    def read(self, size: int = -1) -> bytes:
        if self._file.tell() + size > self._good:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return self._file.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> Stale:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def test_a_momentary_read_error_costs_no_shard(
    npy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssat_ray.data.importers.arrays.BLOCK_BYTES", 10 * 64)
    import_pool([npy], str(tmp_path / "whole"), shard_rows=10)
    with monkeypatch.context() as patch:
        patch.setattr(
            "ssat_ray.data.importers.npy.open",
            lambda path, mode: Stale(path, 128 + 85 * 64),
            raising=False,
        )
        with pytest.raises(
            UserError, match=r"a\.npy cannot be read: Stale file handle\."
        ) as caught:
            import_pool([npy], str(tmp_path / "pool"), shard_rows=10)
    assert not isinstance(caught.value, DamagedFile)
    assert len(json.loads((tmp_path / "pool" / "import.json").read_text())["notes"]) == 8
    kept = (tmp_path / "pool" / "shard-00007.parquet").stat().st_mtime_ns
    pool, _ = import_pool([npy], str(tmp_path / "pool"), shard_rows=10)
    assert pool.manifest == Pool(tmp_path / "whole").manifest
    assert (tmp_path / "pool" / "shard-00007.parquet").stat().st_mtime_ns == kept


def test_a_labels_file_that_is_corrected_after_a_kill(npy: Path, tmp_path: Path) -> None:
    options = ImportOptions(labels=str(tmp_path / "l.npy"))
    target = tmp_path / "pool"
    (target / "shard-00005.parquet").mkdir(parents=True)  # no file can take its place
    with pytest.raises(
        UserError, match=r"shard-00005.*a\.npy row 50, could not be written: Is a dir"
    ):
        import_pool([npy], str(target), options, shard_rows=10, restart=True)
    (target / "shard-00005.parquet").rmdir()
    np.save(tmp_path / "l.npy", LABELS + 1)
    pool, _ = import_pool([npy], str(target), options, shard_rows=10)
    np.testing.assert_array_equal(pool.load().labels, LABELS + 1)


def test_another_command_than_the_one_begun_is_told_plainly(npy: Path, tmp_path: Path) -> None:
    target = tmp_path / "pool"
    job = {"options": {"copy of": []}, "files": []}
    target.mkdir()
    for name in ("import", "append"):
        journal = {"job": job, "starts": [0], "notes": []}
        (target / f"{name}.json").write_text(json.dumps(journal))
    with pytest.raises(UserError, match=r"import\.json is of an unfinished command") as caught:
        import_pool([npy], str(target))
    assert "written" not in str(caught.value) and "make room" not in str(caught.value)


def test_an_origin_that_cannot_be_read(npy: Path, tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    pool, _ = import_pool([npy], str(origin), shard_rows=10)
    (origin / "shard-00004.parquet").rename(tmp_path / "kept")
    (origin / "shard-00004.parquet").mkdir()  # opening it is an OSError
    with pytest.raises(
        UserError, match=r"origin/shard-00004\.parquet cannot be read: .*\. Once it"
    ):
        copy_pool(str(origin), str(tmp_path / "copy"), shard_rows=10)
    assert len(json.loads((tmp_path / "copy" / "copy.json").read_text())["notes"]) == 4
    (problem,) = verify_pool(Pool(origin))
    assert problem.startswith(f"{origin}/shard-00004.parquet cannot be read: ")
    (origin / "shard-00004.parquet").rmdir()
    (tmp_path / "kept").rename(origin / "shard-00004.parquet")
    assert copy_pool(str(origin), str(tmp_path / "copy"), shard_rows=10)[0].shards == pool.shards


def test_a_journal_that_cannot_be_read(npy: Path, tmp_path: Path) -> None:
    (tmp_path / "pool" / "import.json").mkdir(parents=True)
    with pytest.raises(UserError, match=r"import\.json.*could not be written: Is a directory"):
        import_pool([npy], str(tmp_path / "pool"))
    assert list(Folder(tmp_path / "pool").names()) == []
