"""What is shown of a sweep as it goes, as lines for people or JSON for programs, and the table of its trials."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import suppress
from typing import Any, TextIO

from rich.table import Table

from ssat_ray.board import read_board
from ssat_ray.pipeline import Watcher
from ssat_ray.report.words import duration
from ssat_ray.start import json_line, stamped
from ssat_ray.store import Job
from ssat_ray.sweeps.record import DIVERGED, FAILED, FINISHED, STOPPED, Record, Trial
from ssat_ray.sweeps.space import title

LINE_SECONDS = 60.0
FIGURES = ("validation %", "PGD %", "images", "steps", "total s")
"""Without intervals: those are the comparison's, which has the spread of all trials to judge one by."""


class Lines(Watcher):
    """A line an event, on `out`, or on whatever stdout is by then.

    Args:
        log_format: `text` or `json`.
        run: name of the run or the sweep.
        since: when the command began, of `time.time()`.
    """

    def __init__(
        self, log_format: str, run: str, since: float | None = None, out: TextIO | None = None
    ) -> None:
        self._json, self._run, self._out = log_format == "json", run, out
        self._since = time.time() if since is None else since
        self._waited: set[str] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def say(self, event: str, text: str, **about: Any) -> None:
        """`text` with the time, or a JSON object with `event` and what it is about."""
        line = json_line(self._run, event, **about) if self._json else stamped(text, self._since)
        with self._lock:
            print(line, file=self._out or sys.stdout, flush=True)

    # -- events of the pipeline -----------------------------------------------------------------------

    def planned(self, wanted: list[Job], missing: list[Job]) -> None:
        text = f"{len(missing)} of {len(wanted)} artefacts to compute"
        self.say("planned", text, artefacts=len(wanted), missing=len(missing))

    def stage_started(self, stage: str, jobs: list[Job]) -> None:
        self.say("stage_started", f"{stage}: {len(jobs)} to do", stage=stage, jobs=len(jobs))

    def stage_finished(self, stage: str, jobs: list[Job], seconds: float) -> None:
        about = {"stage": stage, "jobs": len(jobs), "seconds": round(seconds, 3)}
        self.say("stage_finished", f"{stage}: done in {duration(seconds)}", **about)

    def waiting(self, job: Job) -> None:
        if job.digest not in self._waited:
            self._waited.add(job.digest)
            text = f"{job.label}: another process computes it; waiting"
            self.say("waiting", text, stage=job.stage, job=job.label)

    def connecting(self) -> None:
        self.say("connecting", "starting Ray")

    def connected(self, board: Any) -> None:
        """Say every minute what is worked at."""
        self._thread = threading.Thread(
            target=self._poll, args=(board,), name="progress", daemon=True
        )
        self._thread.start()

    def disconnected(self) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()

    def _poll(self, board: Any) -> None:
        before: dict[str, float] = {}
        while not self._stop.wait(LINE_SECONDS):
            with suppress(Exception):  # a board that is gone must not end the sweep
                jobs = read_board(board)
                moved = {k: v for k, v in jobs.items() if v["done"] != before.get(k)}
                before = {k: v["done"] for k, v in jobs.items()}
                under_way = {k: v for k, v in moved.items() if v["done"] < v["total"]}
                if under_way:  # not what a trial that was stopped has left there
                    name, entry = max(under_way.items(), key=lambda item: item[1]["since"])
                    done = {key: entry[key] for key in ("done", "total", "unit", "note")}
                    text = f"  {name}  {entry['done']:,.0f}/{entry['total']:,.0f} {entry['unit']}"
                    self.say("progress", f"{text}  {entry['note']}".rstrip(), job=name, **done)

    # -- events of the sweep --------------------------------------------------------------------------

    def trial_started(self, trial: Trial) -> None:
        self.say("trial_started", f"{title(trial['settings'])}: started", trial=trial["name"])

    def trial_ended(self, trial: Trial, record: Record) -> None:
        ended = len(record.of(FINISHED, STOPPED, FAILED, DIVERGED))
        text = f"{title(trial['settings'])}: {how(trial)}, {duration(trial['seconds'])}"
        about = {key: trial[key] for key in ("status", "step", "cause", "settings")}
        count = f"({ended} of {len(record.trials)} have ended)"
        self.say("trial_ended", f"{text}  {count}", trial=trial["name"], **about)


def how(trial: Trial) -> str:
    """How a trial stands, with the figure or the reason that goes with it."""
    status: str = trial["status"]
    if status == FINISHED:
        return f"PGD {trial['results'][trial['row']]['accuracy']['pgd']['mean']:.1f} %"
    if status == STOPPED:
        step, value = trial["reports"][-1]
        return f"stopped at {step} steps, validation {value:.1f} %"
    return f"{status}: {trial['cause']}" if trial["cause"] else status


def sweep_table(record: Record) -> Table:
    """A line a trial, in the order of the search, and a line a baseline that is the same in all of them."""
    table = Table(box=None, padding=(0, 2, 0, 0), title=None)
    keys = list(record.space.sweep.space)
    for heading in (*keys, "status", *FIGURES):
        table.add_column(heading, justify="left" if heading in (*keys, "status") else "right")
    for trial in record.trials.values():
        settings = [str(trial["settings"][key]) for key in keys]
        if trial["status"] == FINISHED:
            table.add_row(*settings, FINISHED, *_figures(trial["results"][trial["row"]]))
        elif trial["status"] == STOPPED:
            step, value = trial["reports"][-1]
            table.add_row(*settings, STOPPED, f"{value:.1f}", "", "", f"{step:,}", "")
        else:
            table.add_row(*settings, trial["status"])
    for row in record.space.sweep.baselines:
        found = [t["results"][row] for t in record.of(FINISHED) if row in t["results"]]
        if found and all(entry["accuracy"] == found[0]["accuracy"] for entry in found):
            table.add_row(row, *[""] * (len(keys) - 1), "baseline", *_figures(found[0]))
    return table


def _figures(entry: dict[str, Any]) -> list[str]:
    pgd, validation = entry["accuracy"]["pgd"], entry["validation"]
    return [
        f"{sum(validation) / len(validation):.1f}",
        f"{pgd['mean']:.1f}",
        f"{entry['images']:,}",
        f"{sum(entry['steps']) / len(entry['steps']):,.0f}",
        f"{entry['seconds']:,.0f}",
    ]
