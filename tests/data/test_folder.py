"""Folders by path and by URI: the same files, whole or not at all."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from fsspec.implementations.local import LocalFileSystem
from pyarrow import fs as arrow_fs

from ssat_ray.data.folder import Folder
from ssat_ray.errors import UserError


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_files_round_trip(tmp_path: Path, scheme: str) -> None:
    folder = pickle.loads(pickle.dumps(Folder(f"{scheme}{tmp_path}/deep/pool")))
    assert list(folder.names()) == [] and not folder.exists("a.txt")
    folder.write("a.txt", "words")
    folder.write("b.bin", b"\x00\x01")
    assert (tmp_path / "deep" / "pool" / "a.txt").read_text() == "words"
    assert folder.read("b.bin").to_pybytes() == b"\x00\x01"
    with folder.open("a.txt") as file:
        assert file.read(2) == b"wo"
    assert list(folder.names()) == ["a.txt", "b.bin"] and list(folder.names(".bin")) == ["b.bin"]
    folder.delete("a.txt")
    folder.delete("a.txt")
    assert not folder.exists("a.txt")
    assert folder.is_local


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Folder(tmp_path).read("none")


class HdfsLike(arrow_fs.FSSpecHandler):
    """A local file system whose disk can be full, and which moves no file onto another."""

    def __init__(self) -> None:
        super().__init__(LocalFileSystem())
        self.full = False

    def open_output_stream(self, path: str, metadata: object) -> Any:
        stream = super().open_output_stream(path, metadata)
        return pa.PythonFile(_Full(stream), "w") if self.full else stream

    def move(self, source: str, target: str) -> None:
        if os.path.exists(target):
            raise OSError(f"{target} exists")
        super().move(source, target)


class _Full:
    """A stream that takes 10 bytes."""

    closed = False

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, data: bytes) -> int:
        self.stream.write(bytes(data)[:10])
        raise OSError("no space")

    def flush(self) -> None:
        self.stream.flush()

    def close(self) -> None:
        self.stream.close()


def test_a_write_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a file system that is neither local nor an object store."""
    handler = HdfsLike()

    class Opener:
        @staticmethod
        def from_uri(uri: str) -> tuple[Any, str]:
            return arrow_fs.PyFileSystem(handler), uri.removeprefix("other://")

    monkeypatch.setattr(arrow_fs, "FileSystem", Opener)
    folder = Folder(f"other://{tmp_path}")
    folder.write("pool.json", "the first content")
    handler.full = True
    with pytest.raises(OSError, match="no space"):
        folder.write("pool.json", "the second content")
    assert folder.read("pool.json").to_pybytes() == b"the first content"
    handler.full = False
    folder.write("pool.json", "the second content")
    assert folder.read("pool.json").to_pybytes() == b"the second content"
    assert list(folder.names()) == ["pool.json"]


def test_an_unknown_scheme_is_named() -> None:
    with pytest.raises(UserError, match=r"ftp9://host/pool is no location"):
        Folder("ftp9://host/pool").read("pool.json")


def test_options_of_an_object_store_stay_behind_the_file() -> None:
    folder = Folder("s3://bucket/pool?endpoint_override=http://host:9000")
    assert (
        folder.path("pool.json") == "s3://bucket/pool/pool.json?endpoint_override=http://host:9000"
    )
    assert not folder.is_local
