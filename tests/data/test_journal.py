"""When a journal may be gone on from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ssat_ray.data.folder import Folder
from ssat_ray.data.journal import Journal, Note
from ssat_ray.errors import UserError


def job(**files: int) -> dict[str, Any]:
    about = {"mtime_ns": 1, "sample": "0"}
    listed = [{"name": name, "bytes": size, **about} for name, size in files.items()]
    return {"options": {"range": None}, "files": listed}


def journal(folder: Path, given: dict[str, Any]) -> Journal:
    found = Journal(Folder(folder), "import.json", given)
    for i in range(6):
        entry = {"file": f"{i}", "rows": 10, "first_id": 10 * i, "last_id": 10 * i + 9}
        found.add(Note(entry={**entry, "bytes": 1, "sha256": ""}, generation=0, max_label=i))
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


@pytest.mark.parametrize(("image", "labels", "kept"), [(1, 2, 6), (1, 9, 0), (9, 2, 0)])
def test_a_changed_labels_file_drops_the_shards_of_its_images(
    tmp_path: Path, image: int, labels: int, kept: int
) -> None:
    """It is read beside the images, from their first row on."""
    with_labels = {"options": {"labels": "b"}}
    journal(tmp_path, {**job(a=1, b=2), **with_labels})
    now = {**job(a=image, b=labels), **with_labels}
    found = Journal.resume(Folder(tmp_path), "import.json", now, restart=False)
    assert len(found.notes) == kept and found.num_rows == 10 * kept


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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"job": ', r"expecting value"),
        ("[" * 100_000, r"recursion"),
        ("[]", r"it: input should be a valid dict"),
        ('{"job": [], "notes": [], "starts": [0]}', r"job: input should be a valid dict"),
        ('{"job": {"options": {}}, "notes": [], "starts": []}', r"starts: list should have at"),
        ('{"job": {"options": {}}, "notes": [{"entry": 1}], "starts": [0]}', r"notes\.0\.entry: "),
    ],
)
def test_a_damaged_journal_and_half_written_files(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "import.json").write_text(text)
    (tmp_path / ".shard-00000.parquet.0.tmp").write_bytes(b"x")
    (tmp_path / "mine.tmp").write_bytes(b"x")
    with pytest.raises(
        UserError, match=rf"(?i)import\.json is damaged \(.*{expected}.*\); --restart"
    ):
        Journal.resume(Folder(tmp_path), "import.json", job(), restart=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["import.json", "mine.tmp"]
    restarted = Journal.resume(Folder(tmp_path), "import.json", job(), restart=True)
    restarted.save()
    assert json.loads((tmp_path / "import.json").read_text())["notes"] == []
