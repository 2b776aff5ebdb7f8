"""Alternating measurements and how they are shown: medians and a ratio, with the machine and the commit."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssat_ray.errors import RunFailed

NEAR = 0.02
"""Share of its bar within which a ratio is shown to three decimals, or it could read as the bar and miss it."""


def alternate(
    candidates: Mapping[str, Callable[[], object]], repeats: int = 5
) -> dict[str, list[float]]:
    """Wall seconds of each candidate, one call of each in turn, `repeats` times.

    Nothing is called to warm up: a candidate that needs it does so before it is handed over.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, call in candidates.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def between(
    ours: Callable[[], object], bare_seconds: Callable[[], float], repeats: int
) -> tuple[list[float], list[float]]:
    """Wall seconds of `ours`, and what `bare_seconds` found before, between and after its calls."""
    seconds: list[float] = []
    bare = [bare_seconds()]
    for _ in range(repeats):
        start = time.perf_counter()
        ours()
        seconds.append(time.perf_counter() - start)
        bare.append(bare_seconds())
    return seconds, bare


def ssat(verb: str, preset: str, folder: Path, overrides: list[str]) -> None:
    """Run a verb of `ssat` in a folder; RunFailed if it fails."""
    sets = [part for override in overrides for part in ("--set", override)]
    _python(["ssat_ray", verb, preset, "--name", "bench", *sets], folder)


def in_process(module: str, arguments: list[str]) -> dict[str, Any]:
    """What `python -m module` prints last, as JSON, in a fresh process; RunFailed if it fails."""
    found: dict[str, Any] = json.loads(_python([module, *arguments]).splitlines()[-1])
    return found


def _python(arguments: list[str], folder: Path | None = None) -> str:
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunFailed(f"{' '.join(arguments[:2])} failed: {done.stderr.strip()[-500:]}")
    return done.stdout


@dataclass(frozen=True)
class Comparison:
    """One line of a bench.

    Args:
        what: the case, for example `1,000,000 x 64, k = 10`.
        ours, bare: wall seconds of each repeat, in the order in which they alternated.
        bar: least ratio bare / ours that the project promises, or None.
        notes: further figures by name, for example an inertia.
    """

    what: str
    ours: list[float]
    bare: list[float]
    bar: float | None = None
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """Median seconds of the bare alternative / ours: above 1, ours is faster."""
        return statistics.median(self.bare) / statistics.median(self.ours)

    def markdown(self) -> str:
        """A row of the table under `HEADER`."""
        bar, digits = "" if self.bar is None else f"{self.bar:g}", 2
        if self.bar is not None and abs(self.ratio / self.bar - 1) < NEAR:
            digits = 3
        notes = "; ".join(f"{name} {value}" for name, value in self.notes.items())
        return (
            f"| {self.what} | {_seconds(self.ours)} | {_seconds(self.bare)} | {self.ratio:.{digits}f} "
            f"| {bar} | {notes} |"
        )


HEADER = "| case | ours, s | bare, s | bare / ours | bar | notes |\n|---|---:|---:|---:|---:|---|"


def _seconds(found: list[float]) -> str:
    """Median with the extremes: `1.23 (1.20-1.31)`."""
    return f"{statistics.median(found):.3g} ({min(found):.3g}-{max(found):.3g})"
