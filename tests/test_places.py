"""Places: what pathlib does, on a local folder and on an S3-protocol server alike."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from ssat_ray.places import (
    CACHE,
    Place,
    Remote,
    cache_of,
    folder_bytes,
    local_copy,
    local_folder,
    named,
    open_input,
    place,
    remove_tree,
    write_atomic,
)


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty folder, new in every test."""
    if request.param == "local":
        return place(tmp_path / "deep" / "store")
    s3 = request.getfixturevalue("s3")
    return place(s3.uri(f"{s3.bucket()}/deep/store"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_files_and_folders(folder: Place) -> None:
    file = folder / "train" / "abc" / "stage.json"
    assert not folder.exists() and not file.exists() and not list(folder.glob("*"))
    with pytest.raises(FileNotFoundError):
        file.read_bytes()
    with pytest.raises(FileNotFoundError):
        file.stat()
    file.unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        file.unlink()
    write_atomic(file, "words")
    write_atomic(file.with_name("weights"), b"\x00\x01\x02")
    write_atomic(file, "other words")
    assert file.read_text() == "other words" and file.read_bytes() == b"other words"
    assert file.exists() and file.is_file() and not file.is_dir()
    assert folder.exists() and folder.is_dir() and file.parent.is_dir() and not folder.is_file()
    assert file.stat().st_size == 11 and file.stat().st_mtime > 1.7e9
    with open_input(file) as opened:
        opened.seek(6)
        assert opened.read(2) == b"wo"
    assert folder_bytes(folder) == 14 and folder_bytes(folder, ["*.json"]) == 11
    file.unlink()
    assert not file.exists() and [p.name for p in file.parent.iterdir()] == ["weights"]
    remove_tree(folder / "train")
    remove_tree(folder / "train")
    assert not list(folder.rglob("*"))


def test_patterns(folder: Place) -> None:
    names = ["a/1/run.json", "a/2/run.json", "b/1/run.json", "b/1/x/run.json", "run.json", "b.json"]
    for name in names:
        write_atomic(folder / name, name)

    def found(paths: Any) -> list[str]:
        return sorted(p.read_text() for p in paths if p.is_file())

    assert found(folder.glob("*/*/run.json")) == names[:3]
    assert found(folder.glob("*.json")) == ["b.json", "run.json"]
    assert found(folder.glob("b/1/run.json")) == ["b/1/run.json"]
    assert found(folder.rglob("run.json")) == sorted(n for n in names if n != "b.json")
    assert sorted(p.name for p in folder.iterdir()) == ["a", "b", "b.json", "run.json"]
    assert sorted(p.name for p in folder.glob("*") if p.is_dir()) == ["a", "b"]
    assert list((folder / "b.json").glob("*")) == []


def test_names(folder: Place) -> None:
    file = folder / "train/abc" / "stage.json"
    assert (file.name, file.parent.name, file.parent.parent) == (
        "stage.json",
        "abc",
        folder / "train",
    )
    assert (
        file == folder / "train" / "abc/stage.json"
        and len({file, folder / "train/abc/stage.json"}) == 1
    )
    assert sorted([folder / "b", folder / "a"])[0] == folder / "a"
    assert place(str(file)) == file and place(file) == file
    assert pickle.loads(pickle.dumps(file)) == file


def test_more_objects_than_a_page_lists_and_more_parts_than_one(s3: Any) -> None:
    bucket = s3.bucket()
    folder = place(s3.uri(f"{bucket}/notes"))
    for i in range(1100):
        s3.client.put_object(Bucket=bucket, Key=f"notes/parts/{i:05d}.json", Body=b"{}")
    assert [p.name for p in (folder / "parts").iterdir()] == [f"{i:05d}.json" for i in range(1100)]
    big = os.urandom(23 * 2**20)
    write_atomic(folder / "big", big)
    assert (folder / "big").read_bytes() == big
    etag = s3.client.head_object(Bucket=bucket, Key="notes/big")["ETag"]
    assert "-" in etag, "an object of several parts has a number of parts in its tag"
    remove_tree(folder)
    assert s3.keys(bucket) == []


def test_local_copies_are_made_once(s3: Any, cache: Path) -> None:
    bucket = s3.bucket()
    folder = place(s3.uri(f"{bucket}/model"))
    assert isinstance(folder, Remote)
    for name, data in (("unet/config.json", "{}"), ("unet/weights", "abc"), ("index.json", "[]")):
        write_atomic(folder / name, data)
    copy = local_copy(folder / "unet" / "weights")
    assert copy.is_relative_to(cache) and copy.read_text() == "abc"
    s3.client.put_object(Bucket=bucket, Key="model/unet/weights", Body=b"xyz")
    assert local_copy(folder / "unet" / "weights").read_text() == "abc"
    whole = local_folder(folder)
    found = {str(p.relative_to(whole)) for p in whole.rglob("*") if p.is_file()}
    assert found == {"unet/config.json", "unet/weights", "index.json"}
    assert cache_of(folder) == whole
    copy.write_text("half")  # a process was killed, or the disk was full
    assert local_copy(folder / "unet" / "weights").read_text() == "xyz"


def test_local_places_are_their_own_copies(tmp_path: Path) -> None:
    assert local_copy(tmp_path / "x") == tmp_path / "x" and local_folder(tmp_path) == tmp_path
    assert place(f"file://{tmp_path}/x") == tmp_path / "x"
    assert place("x") == Path.cwd() / "x"
    assert named("x") == Path("x") and named(f"file://{tmp_path}/x") == tmp_path / "x"


def test_connections_are_shared_and_not_pickled(s3: Any) -> None:
    folder = place(s3.uri(f"{s3.bucket()}/store"))
    assert isinstance(folder, Remote)
    system, path = folder.opened
    assert (folder / "a/b").opened[0] is system and (folder / "a/b").opened[1] == f"{path}/a/b"
    assert (folder / "a").parent.opened == (system, path)
    assert folder.parent.opened == (system, path.rpartition("/")[0])
    again = pickle.loads(pickle.dumps(folder / "a"))
    assert again.opened[0] is not system and again.opened[1] == f"{path}/a"
