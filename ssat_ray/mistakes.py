"""What helps to say a mistake in the configuration well: the nearest right word, problems moved to their key."""

from __future__ import annotations

import difflib

from pydantic import ValidationError
from pydantic_core import InitErrorDetails


def nearest(word: str, candidates: list[str]) -> str:
    """` (did you mean '...'?)`, or nothing where no candidate is near."""
    leaf = word.rpartition(".")[2]
    found = [c for c in candidates if c.rpartition(".")[2] == leaf]  # a right leaf, wrong section
    if len(found) != 1:
        found = difflib.get_close_matches(word, candidates, n=1, cutoff=0.4)
    return f" (did you mean {found[0]!r}?)" if found else ""


def moved(error: ValidationError, prefix: tuple[str, ...]) -> ValidationError:
    """The same problems at keys below `prefix`."""
    problems = [
        InitErrorDetails(
            type=item["type"],
            loc=(*prefix, *item["loc"]),
            input=item["input"],
            ctx=item.get("ctx", {}),
        )
        for item in error.errors()
    ]
    return ValidationError.from_exception_data(error.title, problems)
