"""Pools and training states on a real S3-protocol server: import, append, copy, verify, synth, resume."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow import fs as arrow_fs

from ssat_ray.config import DataConfig, SynthConfig
from ssat_ray.data.folder import Folder
from ssat_ray.data.ingest import append_pool, copy_pool, import_pool, verify_pool
from ssat_ray.data.labelled import read_labelled
from ssat_ray.data.pool import MANIFEST, Pool
from ssat_ray.data.synth_pool import synth_pool
from ssat_ray.errors import UserError
from ssat_ray.training.state import States

IMAGES = np.random.default_rng(0).integers(0, 256, (50, 4, 5, 3), dtype=np.uint8)


@pytest.fixture(params=["s3", "mock"])
def remote(
    request: pytest.FixtureRequest, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], str]:
    """name -> URI of a folder on a real S3 server, or in a file system that moves files, as HDFS does."""
    if request.param == "s3":
        bucket = s3.bucket()
        return lambda name: s3.uri(f"{bucket}/{name}")
    system = arrow_fs._MockFileSystem()
    for name in ("pool", "copy"):
        system.create_dir(f"bucket/{name}")  # it wants them made, unlike object stores
    from_uri = arrow_fs.FileSystem.from_uri

    class Opener:
        @staticmethod
        def from_uri(uri: str) -> tuple[Any, str]:
            if uri.startswith("mock://"):
                return system, uri.removeprefix("mock://")
            return from_uri(uri)

    monkeypatch.setattr(arrow_fs, "FileSystem", Opener)
    return "mock://bucket/{}".format


def test_a_pool_in_a_store(remote: Callable[[str], str], tmp_path: Path) -> None:
    first, second = tmp_path / "a.npz", tmp_path / "b.npz"
    np.savez(first, image=IMAGES[:30], label=np.arange(30) % 4)
    np.savez(second, image=IMAGES[30:])
    uri = remote("pool")
    assert not Folder(uri).is_local
    _, written = import_pool([first], uri, shard_rows=8)
    assert written and import_pool([first], uri, shard_rows=8)[1] is False
    assert append_pool([second], uri, shard_rows=8)[1] is True
    assert append_pool([second], uri, shard_rows=8)[1] is False
    np.testing.assert_array_equal(Pool(uri).load().images, IMAGES)
    assert sorted(Folder(uri).names()) == [MANIFEST, *(s["file"] for s in Pool(uri).shards)]
    copied, _ = copy_pool(uri, remote("copy"), shard_rows=20)
    copy_pool(remote("copy"), str(tmp_path / "back"), shard_rows=20)
    assert copied.shards == Pool(tmp_path / "back").shards and verify_pool(copied) == []
    Folder(remote("copy")).delete("shard-00001.parquet")
    (problem,) = verify_pool(copied)
    assert f"{copied.shard_path(1)} is listed in pool.json and missing" in problem


def test_a_store_that_fails_in_the_middle(
    remote: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labelled, config = read_labelled(DataConfig()), SynthConfig(num_images=500, shard_rows=100)
    write, uri = Folder.write, remote("pool")

    def refuse(self: Folder, name: str, data: bytes | str) -> None:
        if name == "shard-00003.parquet":
            raise OSError("AWS Error ACCESS_DENIED")
        write(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "write", refuse)
        with pytest.raises(UserError, match=rf"{re.escape(uri)}: shard-00003.*ACCESS_DENIED"):
            synth_pool(labelled, uri, config)
    assert "synth.json" in list(Folder(uri).names())
    pool, _ = synth_pool(labelled, uri, config)
    local, _ = synth_pool(labelled, str(tmp_path / "pool"), config)
    assert pool.shards == local.shards and verify_pool(pool) == []
    assert list(Folder(uri).names(".json")) == [MANIFEST]


def test_files_of_many_parts_and_more_than_a_thousand_of_them(s3: Any) -> None:
    bucket = s3.bucket()
    folder = Folder(s3.uri(f"{bucket}/many"))
    large = np.random.default_rng(1).bytes(30 * 2**20)
    folder.write("large.bin", large)
    assert folder.read("large.bin").to_pybytes() == large
    assert "-" in s3.client.head_object(Bucket=bucket, Key="many/large.bin")["ETag"], "one part"
    names = [f"{i:04d}.json" for i in range(1050)]
    for name in names:
        s3.client.put_object(Bucket=bucket, Key=f"many/{name}", Body=b"")
    assert list(folder.names(".json")) == names
    folder.delete("0000.json")
    assert not folder.exists("0000.json") and list(folder.names(".json")) == names[1:]


def test_a_bucket_that_is_not_there(s3: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", image=IMAGES, label=np.arange(50))
    with pytest.raises(UserError, match=r"s3://no-such-bucket/pool.*"):
        import_pool([tmp_path / "a.npz"], s3.uri("no-such-bucket/pool"))
    with pytest.raises(UserError, match="no-such-bucket/pool"):
        Pool(s3.uri("no-such-bucket/pool"))


def test_training_states_in_a_store(s3: Any) -> None:
    bucket = s3.bucket()
    states = States(s3.uri(f"{bucket}/runs/1"), keep=2)
    assert states.load() is None
    weights = torch.arange(5.0)
    for step in (10, 20, 30):
        states.save(step, {"step": step, "weights": weights * step})
    assert s3.keys(bucket) == ["runs/1/0000000020.pt", "runs/1/0000000030.pt"]
    s3.client.put_object(Bucket=bucket, Key="runs/1/0000000030.pt", Body=b"cut short")
    state = States(s3.uri(f"{bucket}/runs/1")).load()
    assert state is not None and state["step"] == 20
    assert torch.equal(state["weights"], weights * 20)
    states.drop()
    assert s3.keys(bucket) == []
