"""Folders by path and by URI: the same files, whole or not at all."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

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


def test_an_unknown_scheme_is_named() -> None:
    with pytest.raises(UserError, match=r"ftp9://host/pool is no location"):
        Folder("ftp9://host/pool").read("pool.json")


def test_options_of_an_object_store_stay_behind_the_file() -> None:
    folder = Folder("s3://bucket/pool?endpoint_override=http://host:9000")
    assert (
        folder.path("pool.json") == "s3://bucket/pool/pool.json?endpoint_override=http://host:9000"
    )
    assert not folder.is_local
