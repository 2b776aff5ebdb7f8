"""What is shown of a run: a live stage table in a terminal, plain lines elsewhere, or JSON for log collectors."""

from __future__ import annotations

import os
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table

from ssat_ray.board import read_board
from ssat_ray.config import Config
from ssat_ray.pipeline import Outcome, Watcher
from ssat_ray.plan import STAGES
from ssat_ray.report.guided import guided_images
from ssat_ray.report.words import Row, duration
from ssat_ray.start import json_line, stamped
from ssat_ray.store import Job
from ssat_ray.tables import guided_table, results_table, selection_table

POLL_SECONDS = 1.0
LINE_SECONDS = 30.0


@contextmanager
def quiet_output(log: Path) -> Iterator[TextIO]:
    """Send everything that this process and its children print to `log`; yields the real stdout."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    screen = os.fdopen(os.dup(1), "w", buffering=1, errors="replace")
    sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    try:
        yield screen
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for target, original in zip((1, 2), saved, strict=True):
            os.dup2(original, target)
            os.close(original)
        os.close(sink)
        screen.flush()


@dataclass(frozen=True)
class Ends:
    """What a command ends with that its results do not have, as far as it was asked for.

    Args:
        selection: a line a row and seed that selects: where the chosen images are.
        quality: a line a guided row and seed: where the figures of its images are.
        guided: these figures (`tables.guided_rows`).
    """

    selection: list[str] = field(default_factory=list)
    quality: list[str] = field(default_factory=list)
    guided: list[Row] = field(default_factory=list)


class Follower(Watcher, ABC):
    """Polls the progress board from a thread while there is one; subclasses show what it says."""

    poll_seconds = POLL_SECONDS

    def __init__(self) -> None:
        self._board: Any = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def connected(self, board: Any) -> None:
        self._board = board
        self._thread = threading.Thread(target=self._poll, name="progress", daemon=True)
        self._thread.start()

    def disconnected(self) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()

    def close(self) -> None:
        """Nothing is shown from now on."""
        self.disconnected()

    def _poll(self) -> None:
        while not self._stop.wait(self.poll_seconds):
            with suppress(Exception):  # a board that is gone must not end the run
                self._show(read_board(self._board))

    @abstractmethod
    def _show(self, jobs: dict[str, dict[str, Any]]) -> None:
        """What the jobs on the board have done so far."""

    @abstractmethod
    def finished(self, outcome: Outcome, ends: Ends) -> None:
        """Say what came out, with what the command was to end with."""


def follower(config: Config, screen: TextIO, run: str, since: float) -> Follower:
    """What shows a run as `runtime.log_format` says.

    Args:
        screen: where the lines go.
        run: its name.
        since: when the command began.
    """
    if config.runtime.log_format == "json":
        return JsonLines(screen, run)
    return View(Console(file=screen, width=None if screen.isatty() else 140), since)


class View(Follower):
    """Follows the pipeline's events and polls the progress board.

    Args:
        since: when the command began, for the times of its lines; default: now.
    """

    def __init__(self, console: Console, since: float | None = None) -> None:
        super().__init__()
        self.console = console
        self.start = time.time() if since is None else since
        self.stages: dict[str, dict[str, Any]] = {}
        self.current: list[str] = []
        self.waited: set[str] = set()
        self._live: Live | None = None
        self._last_line = 0.0

    # -- events of the pipeline -----------------------------------------------------------------------

    def planned(self, wanted: list[Job], missing: list[Job]) -> None:
        for name in STAGES:
            jobs = [job for job in wanted if job.stage == name]
            todo = sum(job.stage == name for job in missing)
            if jobs:
                self.stages[name] = {"jobs": len(jobs), "todo": todo, "seconds": None, "status": ""}
        if missing and self.console.is_terminal:
            self._live = Live(self._table(), console=self.console, refresh_per_second=2)
            self._live.start()

    def connecting(self) -> None:
        self._line("starting Ray")

    def close(self) -> None:
        super().close()
        if self._live:
            self._live.update(self._table())
            self._live.stop()

    def stage_started(self, stage: str, jobs: list[Job]) -> None:
        self.current.append(stage)
        self.stages[stage]["status"] = "starting"
        if not self._live:
            self._line(
                f"{stage}: {len(jobs)} to do ({', '.join(job.about or job.stage for job in jobs[:4])}{', ...' if len(jobs) > 4 else ''})"
            )

    def stage_finished(self, stage: str, jobs: list[Job], seconds: float) -> None:
        entry = self.stages[stage]
        entry.update(
            todo=entry["todo"] - len(jobs), seconds=(entry["seconds"] or 0.0) + seconds, status=""
        )
        self.current.remove(stage)
        if not self._live:
            self._line(f"{stage}: done in {duration(seconds)}")

    def waiting(self, job: Job) -> None:
        if job.digest not in self.waited:
            self.waited.add(job.digest)
            self._line(f"{job.label}: another process computes it; waiting")

    def finished(self, outcome: Outcome, ends: Ends) -> None:
        say = self.console.print
        if outcome.computed == 0:
            say(f"everything is up to date ({outcome.total} artefacts)", highlight=False)
        if outcome.results is not None:
            selected = outcome.results.get("kind") == "selection"
            say((selection_table if selected else results_table)(outcome.results))
            for warning in outcome.results["warnings"]:
                say(f"warning: {warning}", highlight=False, markup=False)
            say(f"report: {outcome.folder / 'report.html'}", highlight=False, soft_wrap=True)
        if ends.guided:
            say(guided_table(ends.guided))
        for line in (*ends.selection, *ends.quality):
            say(line, highlight=False, markup=False, soft_wrap=True)

    # -- what is shown --------------------------------------------------------------------------------

    def _show(self, jobs: dict[str, dict[str, Any]]) -> None:
        active = _under_way(jobs, self.current)
        if active:
            name, entry = max(active.items(), key=lambda item: item[1]["since"])
            status = _status(name, entry)
            self.stages[name.split()[0]]["status"] = status
            if not self._live and time.time() - self._last_line > LINE_SECONDS:
                self._line("  " + status)
        if self._live:
            self._live.update(self._table())

    def _line(self, text: str) -> None:
        self._last_line = time.time()
        self.console.print(stamped(text, self.start), highlight=False, markup=False)

    def _table(self) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), title=None)
        for heading in ("stage", "done", "time", ""):
            table.add_column(heading, style="bold" if heading == "stage" else "")
        for name, entry in self.stages.items():
            done = entry["jobs"] - entry["todo"]
            seconds = "" if entry["seconds"] is None else duration(entry["seconds"])
            status = (
                "up to date" if not entry["todo"] and entry["seconds"] is None else entry["status"]
            )
            table.add_row(name, f"{done}/{entry['jobs']}", seconds, status)
        return table


class JsonLines(Follower):
    """A JSON object a line for programs that collect logs: `time` (s), `run`, `event`, and what it is about.

    Events: `planned`, `connecting`, `stage_started`, `progress`, `waiting`, `stage_finished`, `finished`. The command
    itself says `starting` and `failed`.
    """

    poll_seconds = LINE_SECONDS

    def __init__(self, out: TextIO, run: str) -> None:
        super().__init__()
        self._out, self._run = out, run
        self._current: list[str] = []
        self._waited: set[str] = set()

    def say(self, event: str, **about: Any) -> None:
        self._out.write(json_line(self._run, event, **about) + "\n")
        self._out.flush()

    def planned(self, wanted: list[Job], missing: list[Job]) -> None:
        self.say("planned", artefacts=len(wanted), missing=len(missing))

    def connecting(self) -> None:
        self.say("connecting")

    def stage_started(self, stage: str, jobs: list[Job]) -> None:
        self._current.append(stage)
        self.say("stage_started", stage=stage, jobs=[job.label for job in jobs])

    def stage_finished(self, stage: str, jobs: list[Job], seconds: float) -> None:
        self._current.remove(stage)
        self.say("stage_finished", stage=stage, jobs=len(jobs), seconds=round(seconds, 3))

    def waiting(self, job: Job) -> None:
        if job.digest not in self._waited:
            self._waited.add(job.digest)
            self.say("waiting", stage=job.stage, job=job.label)

    def finished(self, outcome: Outcome, ends: Ends) -> None:
        results = outcome.results
        files = {} if results is None else {"report": str(outcome.folder / "report.html")}
        warnings = [] if results is None else results["warnings"]
        about = {"computed": outcome.computed, "artefacts": outcome.total, **files}
        made = {"selection": ends.selection, "quality": ends.quality}
        seen = guided_images(ends.guided)
        self.say("finished", **about, warnings=warnings, **made, guided=seen)

    def _show(self, jobs: dict[str, dict[str, Any]]) -> None:
        for name, entry in _under_way(jobs, self._current).items():
            done = {key: entry[key] for key in ("done", "total", "unit", "note")}
            self.say("progress", stage=name.split()[0], job=name, **done)


def _under_way(jobs: dict[str, dict[str, Any]], stages: list[str]) -> dict[str, dict[str, Any]]:
    """The board's entries of these stages' jobs that have not ended."""
    mine = {name: entry for name, entry in jobs.items() if name.split()[0] in stages}
    return {name: entry for name, entry in mine.items() if entry["done"] < entry["total"]}


def _status(name: str, entry: dict[str, Any]) -> str:
    """`train lcs-km seed 0   340/750 steps  17.1/s  left 24 s  loss 0.51`"""
    elapsed = time.time() - entry["since"]
    rate = (entry["done"] - entry["first"]) / elapsed if elapsed > 1 else 0.0
    left = f"  left {duration((entry['total'] - entry['done']) / rate)}" if rate else ""
    speed = f"  {rate:,.1f}/s" if rate else ""
    return f"{name}  {entry['done']:,.0f}/{entry['total']:,.0f} {entry['unit']}{speed}{left}  {entry['note']}".rstrip()
