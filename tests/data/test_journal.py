"""Fingerprints of files, and when a journal may be gone on from."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssat_ray.data.folder import Folder
from ssat_ray.data.journal import Journal, Note, fingerprint, same_content, with_hashes
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
    assert first != touched and same_content(known, [path], touched)
    with pytest.raises(UserError, match=r"a\.npz changed while it was imported"):
        with_hashes([path], first)
    for at in {0, size // 2, size - 1} if 0 < size <= 2**20 else {0, size - 1} if size else ():
        changed = bytearray(data)
        changed[at] ^= 1
        path.write_bytes(changed)
        assert not same_content(known, [path], fingerprint([path]))
    path.write_bytes(data + b"x")
    assert not same_content(known, [path], fingerprint([path]))


def test_a_folder_is_known_by_its_files(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.png").write_bytes(b"12")
    first = fingerprint([tmp_path])
    assert fingerprint([tmp_path]) == first and first[0]["bytes"] == 2
    (tmp_path / "cat" / "a.png").rename(tmp_path / "cat" / "b.png")
    assert not same_content(first, [tmp_path], fingerprint([tmp_path]))
    (tmp_path / "cat" / "c.png").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"cat/c\.png cannot be read: No such file"):
        fingerprint([tmp_path])


def job(**files: int) -> dict[str, Any]:
    listed = [{"name": name, "bytes": size} for name, size in files.items()]
    return {"options": {"range": None}, "files": listed}


def journal(folder: Path, given: dict[str, Any]) -> Journal:
    found = Journal(Folder(folder), "import.json", given)
    for i in range(6):
        found.add(Note(entry={"rows": 10, "file": f"{i}"}, generation=0, max_label=i))
    found.starts = [0, 25, 45]
    found.save()
    return found


@pytest.mark.parametrize(
    ("now", "kept", "starts"),
    [
        (job(a=1, b=2, c=3), 6, [0, 25, 45]),
        (job(a=1, b=2, c=4), 4, [0, 25, 45]),
        (job(a=1, b=9, c=4), 2, [0, 25]),
        (job(a=5, b=2, c=3), 0, [0]),
    ],
)
def test_shards_of_files_before_the_first_changed_one_are_kept(
    tmp_path: Path, now: dict[str, Any], kept: int, starts: list[int]
) -> None:
    journal(tmp_path, job(a=1, b=2, c=3))
    found = Journal.resume(Folder(tmp_path), "import.json", now, restart=False)
    assert len(found.notes) == kept and found.starts == starts
    assert Journal.resume(Folder(tmp_path), "import.json", now, restart=True).notes == []


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (job(a=1, b=2), r"unfinished command with files a, b, c"),
        (job(a=1, b=2, d=3), r"unfinished command with files a, b, c"),
        ({**job(a=1, b=2, c=3), "options": {"range": "0,1"}}, r"with range None \(now 0,1\)\. Run"),
    ],
)
def test_another_job_is_refused(tmp_path: Path, now: dict[str, Any], expected: str) -> None:
    journal(tmp_path, job(a=1, b=2, c=3))
    with pytest.raises(UserError, match=expected):
        Journal.resume(Folder(tmp_path), "import.json", now, restart=False)


def test_a_damaged_journal_and_half_written_files(tmp_path: Path) -> None:
    (tmp_path / "import.json").write_text('{"job": ')
    (tmp_path / ".shard-00000.parquet.0.tmp").write_bytes(b"x")
    (tmp_path / "mine.tmp").write_bytes(b"x")
    with pytest.raises(UserError, match=r"import\.json is damaged; --restart"):
        Journal.resume(Folder(tmp_path), "import.json", job(), restart=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["import.json", "mine.tmp"]
    restarted = Journal.resume(Folder(tmp_path), "import.json", job(), restart=True)
    restarted.save()
    assert json.loads((tmp_path / "import.json").read_text())["notes"] == []
