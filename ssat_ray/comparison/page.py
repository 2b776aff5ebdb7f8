"""A comparison from its sources to its page: what `ssat compare` does, and `ssat sweep` at its end."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ssat_ray.comparison.analysis import Question, analyse
from ssat_ray.comparison.html import render
from ssat_ray.comparison.sources import folder_of, read_sources
from ssat_ray.errors import UserError
from ssat_ray.places import Place, write_atomic
from ssat_ray.run_folder import PAGE

Record = dict[str, Any]


def write_page(
    names: Sequence[str], question: Question, store: Place | None = None, out: Place | None = None
) -> tuple[Record, Place]:
    """Compare what the names stand for and write the page.

    Args:
        names: as of `read_sources`, in the question's `runs`.
        store: as of `read_sources`.
        out: the page; None: in the folder of the one run or sweep, in the current folder otherwise.

    Returns:
        What `analyse` found, with `created` and `sources`, and where the page is.

    Raises:
        UserError: a name stands for nothing, there is nothing to compare, or the page cannot be written.
    """
    found = analyse(read_sources(names, question.runs, store), question)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    only = folder_of(names[0], question.runs) if len(names) == 1 else None
    page = out or (only or Path()) / PAGE
    try:
        write_atomic(page, render(found, " · ".join(names), created.replace("T", " ")))
    except OSError as error:
        raise UserError(f"{page} cannot be written ({error.strerror}).") from error
    return {"created": created, "sources": list(names), **found}, page
