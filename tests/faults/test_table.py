"""The table of faults: rows from a log, into a page whose other text stays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.faults.table import BEGIN, END, main, replaced

PAGE = Path(__file__).parents[2] / "docs/benchmarks/faults.md"
ENTRY = {
    "stage": "train",
    "fault": "host lost",
    "done": 83,
    "total": 400,
    "unit": "steps",
    "submissions": 1,
    "after_seconds": 42,
    "identical": True,
    "date": "2026-11-22",
    "commit": "0123456789abcdef",
}
CUT = {"fault": "cut off until declared dead", "cut_off_seconds": 29.4, "date": "2026-11-23"}
QUALITY = {"stage": "quality", "done": 1.5, "total": 4.0, "unit": "s", "identical": False}


def test_the_page_gets_a_row_a_fault_and_keeps_its_text(tmp_path: Path) -> None:
    log, page = tmp_path / "faults.jsonl", tmp_path / "faults.md"
    entries = (ENTRY, ENTRY | CUT, ENTRY | QUALITY)
    log.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    page.write_text(f"# Faults\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    main(log, page)
    text = page.read_text()
    assert text.startswith("# Faults\n\n") and text.endswith(f"{END}\n\nafter\n")
    assert "old" not in text and "3 faults of 2 kinds in 2 stages" in text
    assert "2026-11-22 to 2026-11-23, commit 0123456789." in text
    assert text.count("\n| `") == 3
    assert "| `train` | host lost | 83 of 400 steps | 1 | 42 | yes |" in text
    assert "| cut off until declared dead (29 s) |" in text
    assert "| `quality` | host lost | 1.5 of 4 s | 1 | 42 | NO |" in text
    main(log, page)
    assert page.read_text() == text


def test_the_page_of_the_repository_has_the_marks() -> None:
    assert "| stage |" not in replaced(PAGE.read_text(), "")
    with pytest.raises(ValueError, match="has no"):
        replaced("a page", "")
