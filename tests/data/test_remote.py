"""Pools in a file system that is not local: import, append, copy, verify and synth, from Arrow's mock one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import fs as arrow_fs

from ssat_ray.config import DataConfig, SynthConfig
from ssat_ray.data.folder import Folder
from ssat_ray.data.ingest import append_pool, copy_pool, import_pool, verify_pool
from ssat_ray.data.labelled import read_labelled
from ssat_ray.data.pool import MANIFEST, Pool
from ssat_ray.data.synth_pool import synth_pool
from ssat_ray.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (50, 4, 5, 3), dtype=np.uint8)


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> Any:
    """One file system for all of a test, at mock://; it wants folders made, unlike object stores."""
    system = arrow_fs._MockFileSystem()
    for name in ("pool", "copy"):
        system.create_dir(f"bucket/{name}")
    from_uri = arrow_fs.FileSystem.from_uri

    class Opener:
        @staticmethod
        def from_uri(uri: str) -> tuple[Any, str]:
            if uri.startswith("mock://"):
                return system, uri.removeprefix("mock://")
            return from_uri(uri)

    monkeypatch.setattr(arrow_fs, "FileSystem", Opener)
    return system


def test_a_pool_in_a_store(remote: Any, tmp_path: Path) -> None:
    first, second = tmp_path / "a.npz", tmp_path / "b.npz"
    np.savez(first, image=IMAGES[:30], label=np.arange(30) % 4)
    np.savez(second, image=IMAGES[30:])
    uri = "mock://bucket/pool"
    assert not Folder(uri).is_local
    _, written = import_pool([first], uri, shard_rows=8)
    assert written and import_pool([first], uri, shard_rows=8)[1] is False
    assert append_pool([second], uri, shard_rows=8)[1] is True
    assert append_pool([second], uri, shard_rows=8)[1] is False
    np.testing.assert_array_equal(Pool(uri).load().images, IMAGES)
    assert sorted(Folder(uri).names()) == [MANIFEST, *(s["file"] for s in Pool(uri).shards)]
    copied, _ = copy_pool(uri, "mock://bucket/copy", shard_rows=20)
    copy_pool("mock://bucket/copy", str(tmp_path / "back"), shard_rows=20)
    assert copied.shards == Pool(tmp_path / "back").shards and verify_pool(copied) == []
    remote.delete_file("bucket/copy/shard-00001.parquet")
    (problem,) = verify_pool(copied)
    assert "mock://bucket/copy/shard-00001.parquet is listed in pool.json and missing" in problem


def test_a_store_that_fails_in_the_middle(
    remote: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labelled, config = read_labelled(DataConfig()), SynthConfig(num_images=500, shard_rows=100)
    write = Folder.write

    def refuse(self: Folder, name: str, data: bytes | str) -> None:
        if name == "shard-00003.parquet":
            raise OSError("AWS Error ACCESS_DENIED")
        write(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "write", refuse)
        with pytest.raises(UserError, match=r"mock://bucket/pool: shard-00003.*ACCESS_DENIED"):
            synth_pool(labelled, "mock://bucket/pool", config)
    assert "synth.json" in list(Folder("mock://bucket/pool").names())
    pool, _ = synth_pool(labelled, "mock://bucket/pool", config)
    local, _ = synth_pool(labelled, str(tmp_path / "pool"), config)
    assert pool.shards == local.shards and verify_pool(pool) == []
    assert list(Folder("mock://bucket/pool").names(".json")) == [MANIFEST]
