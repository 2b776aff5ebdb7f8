"""What a person sees of a run: a live stage table in a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table

from ssat_ray.drift import MethodDrift
from ssat_ray.estimate import Estimate, Measurements
from ssat_ray.pipeline import Watcher
from ssat_ray.plan import STAGES, Plan
from ssat_ray.report import words
from ssat_ray.report.words import duration
from ssat_ray.runtime import read_board
from ssat_ray.selection.drift import Drift
from ssat_ray.start import stamped
from ssat_ray.store import Job, Store

POLL_SECONDS = 1.0
LINE_SECONDS = 30.0
_NAMED_SHARDS = 5


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


class View(Watcher):
    """Follows the pipeline's events and polls the progress board.

    Args:
        since: when the command began, for the times of its lines; default: now.
    """

    def __init__(self, console: Console, since: float | None = None) -> None:
        self.console = console
        self.start = time.time() if since is None else since
        self.stages: dict[str, dict[str, Any]] = {}
        self.current: list[str] = []
        self.waited: set[str] = set()
        self._board: Any = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
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

    def connected(self, board: Any) -> None:
        self._board = board
        self._thread = threading.Thread(target=self._poll, name="progress", daemon=True)
        self._thread.start()

    def disconnected(self) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()

    def close(self) -> None:
        self.disconnected()
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

    # -- what is shown --------------------------------------------------------------------------------

    def _poll(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            with suppress(Exception):  # a board that is gone must not end the run
                self._show(read_board(self._board))

    def _show(self, jobs: dict[str, dict[str, Any]]) -> None:
        active = {
            k: v
            for k, v in jobs.items()
            if k.startswith(tuple(self.current)) and v["done"] < v["total"]
        }
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


def _status(name: str, entry: dict[str, Any]) -> str:
    """`train lcs-km seed 0   340/750 steps  17.1/s  left 24 s  loss 0.51`"""
    elapsed = time.time() - entry["since"]
    rate = (entry["done"] - entry["first"]) / elapsed if elapsed > 1 else 0.0
    left = f"  left {duration((entry['total'] - entry['done']) / rate)}" if rate else ""
    speed = f"  {rate:,.1f}/s" if rate else ""
    return f"{name}  {entry['done']:,.0f}/{entry['total']:,.0f} {entry['unit']}{speed}{left}  {entry['note']}".rstrip()


def results_table(results: dict[str, Any]) -> Table:
    """The comparison for the terminal: accuracies with intervals, images, steps, seconds."""
    rows = results["rows"]
    names = words.attack_names(rows)
    caption = "\n".join(words.notes(results)) or None
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.caption, table.caption_justify = caption, "left"
    accuracies = [f"{name} %" for name in names.values()]
    for heading in ("row", "images", *accuracies, "PGD vs random", "steps", "total s"):
        table.add_column(heading, justify="left" if heading == "row" else "right")
    for row in rows:
        entries = [row["accuracy"].get(attack) for attack in names]
        difference = row["differences"].get("random")
        table.add_row(
            row["row"],
            f"{words.num_images(row):,}",
            *(words.interval(entry) if entry else "" for entry in entries),
            words.interval(difference, sign=True) if difference else "",
            words.steps_in_text(row),
            f"{row['seconds']['total']:,.0f}",
        )
    return table


def selection_table(results: dict[str, Any]) -> Table:
    """What a selection kept, for the terminal."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for heading in ("row", "seed", "kept", "of", "boundary", "cut", "tied", "duplicates"):
        table.add_column(heading, justify="left" if heading == "row" else "right")
    for one in results["selections"]:
        cut = "" if one["cut"] is None else f"{one['cut']:.6g}"
        counts = [one[key] for key in ("images", "of_images", "boundary")]
        rest = [f"{one[key]:,}" for key in ("tied_at_cut", "duplicates")]
        table.add_row(one["row"], str(one["seed"]), *(f"{n:,}" for n in counts), cut, *rest)
    memory = results["memory"]
    peak = f"; at most {words.size(memory['peak_bytes'])}" if memory else ""
    table.caption = f"{duration(results['total_wall_seconds'])}{peak}"
    table.caption_justify = "left"
    return table


def selection_lines(plan: Plan, store: Store) -> list[str]:
    """Where the chosen images of each row and seed are."""
    return [
        f"{row} seed {seed}: {store.folder(job)}"
        for (row, seed, stage), job in plan.jobs.items()
        if stage == "select"
    ]


def drift_table(found: MethodDrift) -> Table:
    """Every new shard, generation, and all rows against the clusters' fit, for the terminal."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    headings = ("generation", "shard", "rows", "inertia", "PSI clusters", "PSI score", "KS", "says")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "says" else "right")
    for one in found.shards:
        numbers = _drift_numbers(one.drift)
        table.add_row(str(one.generation), str(one.shard), *numbers, one.judgement.status)
    for batch in found.generations if len(found.generations) > 1 else ():
        numbers = _drift_numbers(batch.drift)
        table.add_row(str(batch.generation), "all", *numbers, batch.judgement.status)
    numbers = _drift_numbers(found.whole)
    table.add_row("all", "all", *numbers, found.verdict.together.status, style="bold")
    return table


def drift_lines(found: MethodDrift) -> list[str]:
    """The verdict on one method's clusters in words, after those on shards that are not stable.

    A shard that is all there is to a generation, and gives the verdict, is not named twice.
    """
    said = found.verdict.reason
    odd = [
        one
        for one in found.shards
        if one.judgement.status != "stable" and one.judgement.reason not in said
    ]
    lines = [
        f"generation {one.generation} shard {one.shard}, {one.judgement.status}: {one.judgement.reason}"
        for one in odd[:_NAMED_SHARDS]
    ]
    if len(odd) > _NAMED_SHARDS:
        lines.append(f"and {len(odd) - _NAMED_SHARDS} more shards (--json has the words for all)")
    if found.left_out:
        lines.append(f"{found.left_out:,} new images could not be read and are not compared")
    return [*lines, f"{found.method}, {found.verdict.status}: {said}"]


def _drift_numbers(drift: Drift) -> tuple[str, ...]:
    sizes = (drift.cluster_psi, drift.score_psi, drift.ks)
    return (f"{drift.num_rows:,}", f"{drift.inertia_ratio:.3f}", *(f"{size:.3f}" for size in sizes))


def estimate_table(found: Estimate) -> Table:
    """A line a stage and the total of an estimate, for the terminal."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    memory = ("memory of session", "of an actor")
    headings = ("stage", "start", "work", *memory, "on disk", "until it ends", "")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("stage", "") else "right")
    for one in found.stages:
        times = [duration(seconds) for seconds in (one.start_seconds, one.seconds)]
        sizes = [
            words.size(count) if count else ""
            for count in (one.session_bytes, one.actor_bytes, one.disk_bytes, one.scratch_bytes)
        ]
        mark = "bottleneck" if one.stage == found.bottleneck else ""
        table.add_row(one.stage, *times, *sizes, mark)
    return table


def estimate_lines(found: Estimate, measured: Measurements) -> list[str]:
    """The sums of an estimate, and what it rests on."""
    total = (
        f"{found.images:,} images: {duration(found.seconds)}, of which {duration(measured.session_seconds)} "
        f"start the program and Ray; at most {words.size(found.peak_bytes)}, and {words.size(found.disk_bytes)} on disk"
    )
    more = {
        "{:.3g} GPU-hours": found.gpu_hours,
        "{:.3g} kWh": found.kwh,
        "cost {:.3g}": found.cost,
    }
    sums = [form.format(value) for form, value in more.items() if value is not None]
    rates = [f"measured: {value:,.0f} {name}" for name, value in measured.rates.items()]
    return ["; ".join([total, *sums]), *rates, *found.notes]
