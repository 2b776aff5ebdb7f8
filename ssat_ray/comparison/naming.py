"""Which settings vary among outcomes, and short names by them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ssat_ray.comparison.effects import text
from ssat_ray.comparison.outcomes import Outcome
from ssat_ray.store import canonical_json

NAMED_SETTINGS = 4
"""Outcomes are named by their settings up to this many, by their run beyond."""


def varied(outcomes: Sequence[Outcome], first: Sequence[str] = ()) -> tuple[str, ...]:
    """Settings with more than one value among the outcomes, those of `first` in their order."""
    values: dict[str, set[str]] = {}
    for one in outcomes:
        for key, value in one.settings.items():
            values.setdefault(key, set()).add(canonical_json(value))
    found = {key for key, seen in values.items() if len(seen) > 1}
    return tuple([key for key in first if key in found] + sorted(found - set(first)))


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Key -> its last part, where no other has the same: cluster.k -> k."""
    leaves = Counter(key.rpartition(".")[2] for key in keys)
    return {key: leaf if leaves[leaf := key.rpartition(".")[2]] == 1 else key for key in keys}


def name_outcomes(outcomes: Sequence[Outcome], keys: Sequence[str]) -> list[str]:
    """A short and unique name for each: row and settings, or row and run where that says too little."""
    short = short_keys(keys)
    names = []
    for one in outcomes:
        told = [f"{short[key]}={text(one.settings[key])}" for key in keys if key in one.settings]
        many = len(keys) > NAMED_SETTINGS
        names.append(f"{one.row} ({one.trials[0]})" if many else " ".join([one.row, *told]))
    if len(keys) <= NAMED_SETTINGS:
        names = _told_apart(names, [f"({one.trials[0]})" for one in outcomes])
    names = _told_apart(names, [f"[{one.source}]" for one in outcomes])
    return _told_apart(names, [f"#{number}" for number in range(1, len(names) + 1)])


def _told_apart(names: list[str], more: list[str]) -> list[str]:
    """Names with something added to those that occur more than once."""
    seen = Counter(names)
    return [f"{n} {m}" if seen[n] > 1 else n for n, m in zip(names, more, strict=True)]
