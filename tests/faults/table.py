"""`python -m tests.faults.table LOG PAGE`: put the faults of a log into the page's table, between its two marks."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from ssat_ray.provenance import machine
from ssat_ray.report.words import machine_name, short_commit

BEGIN, END = "<!-- faults -->", "<!-- end of faults -->"
HEADER = """\
| stage | fault | done when it came | submissions | seconds after it | identical |
|---|---|---:|---:|---:|---|"""


def table(entries: list[dict[str, Any]], where: str) -> str:
    """Markdown: machine, dates and commits, then a row a fault.

    Args:
        entries: of `faults.jsonl`.
        where: the machine.
    """
    dates = sorted({entry["date"] for entry in entries})
    commits = sorted({short_commit(entry["commit"]) for entry in entries})
    stages, kinds = ({entry[key] for entry in entries} for key in ("stage", "fault"))
    about = (
        f"{len(entries)} faults of {len(kinds)} kinds in {len(stages)} stages. Machine: {where}; "
        f"{' to '.join(dict.fromkeys((dates[0], dates[-1])))}, commit {', '.join(commits)}."
    )
    return "\n".join([about, "", HEADER, *map(_row, entries)])


def _row(entry: dict[str, Any]) -> str:
    done = f"{entry['done']:g} of {entry['total']:g} {entry['unit']}"
    kind = entry["fault"]
    if "cut_off_seconds" in entry and kind != "cut off for 5 s":
        kind += f" ({entry['cut_off_seconds']:.0f} s)"
    if "orphans" in entry:
        kind += f" ({entry['orphans']})"
    cells = [f"`{entry['stage']}`", kind, done, entry["submissions"], entry["after_seconds"]]
    return f"| {' | '.join(map(str, cells))} | {'yes' if entry['identical'] else 'NO'} |"


def replaced(page: str, text: str) -> str:
    """The page with other text between its marks; ValueError if it has none."""
    found, count = re.subn(
        rf"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n{text}\n{END}", page, flags=re.DOTALL
    )
    if count != 1:
        raise ValueError(f"the page has no {BEGIN} and {END}")
    return found


def main(log: Path, page: Path) -> None:
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    text = table(entries, machine_name(machine()))
    page.write_text(replaced(page.read_text(), text), encoding="utf-8")
    print(f"{len(entries)} faults in {page}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
