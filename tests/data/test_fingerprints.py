"""Fingerprints tell files apart, and know them again."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from ssat_ray.data.fingerprints import (
    by_source,
    fingerprint,
    refuse_twice,
    same_content,
    with_hashes,
)
from ssat_ray.errors import UserError


@pytest.mark.parametrize("size", [0, 10, 2**20, 2 * 2**20 + 1, 5 * 2**20])
def test_a_fingerprint_sees_size_head_and_tail(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.npz"
    data = bytearray(np.random.default_rng(0).bytes(size))
    path.write_bytes(data)
    first = fingerprint([path])
    known = with_hashes([path], first)
    os.utime(path, ns=(0, 0))
    touched = fingerprint([path])
    assert first != touched and same_content(known[0], path, touched[0])
    with pytest.raises(UserError, match=r"a\.npz changed while it was imported"):
        with_hashes([path], first)
    for at in {0, size // 2, size - 1} if 0 < size <= 2**20 else {0, size - 1} if size else ():
        changed = bytearray(data)
        changed[at] ^= 1
        path.write_bytes(changed)
        assert not same_content(known[0], path, fingerprint([path])[0])
    path.write_bytes(data + b"x")
    assert not same_content(known[0], path, fingerprint([path])[0])


def test_a_folder_is_known_by_its_files(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.png").write_bytes(b"12")
    first = fingerprint([tmp_path])
    assert fingerprint([tmp_path]) == first and first[0]["bytes"] == 2
    (tmp_path / "cat" / "a.png").rename(tmp_path / "cat" / "b.png")
    assert not same_content(first[0], tmp_path, fingerprint([tmp_path])[0])
    (tmp_path / "cat" / "c.png").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"cat/c\.png cannot be read: No such file"):
        fingerprint([tmp_path])


def test_a_folder_is_listed_as_os_walk_does(tmp_path: Path) -> None:
    """So that pools imported before know their folders again; classes may be links, deeper ones are not."""
    for name in (
        "b.png",
        "a.txt",
        "dog/z.png",
        "dog/0.png",
        "dog/deep/1.png",
        "cat-/2.png",
        "é.png",
    ):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(name.encode())
    expected = hashlib.sha256()
    for folder, subfolders, names in os.walk(tmp_path / "in"):
        subfolders.sort()
        for name in sorted(names):
            about = os.stat(Path(folder, name))
            place = os.path.relpath(Path(folder, name), tmp_path / "in")
            line = json.dumps([place, about.st_size, about.st_mtime_ns])
            expected.update(line.encode())
    (found,) = fingerprint([tmp_path / "in"])
    assert found["sample"] == expected.hexdigest()[:20]
    (tmp_path / "in" / "dog" / "link").symlink_to(tmp_path / "in" / "cat-")
    assert fingerprint([tmp_path / "in"]) == [found]
    (tmp_path / "in" / "link").symlink_to(tmp_path / "in" / "cat-")
    assert fingerprint([tmp_path / "in"]) != [found]


def test_files_that_are_given_twice(tmp_path: Path) -> None:
    """Also under another name, or with other times; not files that only have equal samples."""
    paths = [tmp_path / name for name in ("a.npy", "b.npy", "c.npy")]
    data = bytearray(np.random.default_rng(0).bytes(5 * 2**20))
    paths[0].write_bytes(data)
    paths[1].write_bytes(data)
    paths[2].symlink_to(paths[0])
    first = fingerprint(paths[:1])[0]
    for others, expected in (
        ([paths[0]], r"a\.npy is given twice"),
        ([tmp_path / "x" / ".." / "a.npy"], r"a\.npy is given twice"),
        ([paths[2]], r"c\.npy is given twice"),
        ([paths[1]], r"b\.npy has the same content as .*a\.npy; give one of them"),
    ):
        (tmp_path / "x").mkdir(exist_ok=True)
        given = [paths[0], *others]
        with pytest.raises(UserError, match=expected):
            refuse_twice(given, fingerprint(given))
    data[2**20 + 2**15] ^= 1  # between the samples
    paths[1].write_bytes(data)
    assert fingerprint(paths[1:2])[0]["sample"] == first["sample"]
    refuse_twice(paths[:2], fingerprint(paths[:2]))


def test_sources() -> None:
    assert by_source(["a", "b"], {"labels": None}) == [["a"], ["b"]]
    assert by_source(["a", "l"], {"labels": "l"}) == [["a", "l"]]
