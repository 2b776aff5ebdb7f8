"""`sweep.json`: what a sweep asks for, its trials and their results; written whole after every change (docs/sweeps.md)."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ssat_ray.errors import UserError
from ssat_ray.places import write_atomic
from ssat_ray.plan import build_plan
from ssat_ray.provenance import git_commit, machine
from ssat_ray.stages.report import RESULTS, read_results
from ssat_ray.sweeps.space import ROW, Point, Space

FILE, SCHEMA = "sweep.json", 1
HISTORIES = "histories.json"
"""In a trial's folder: training's digest -> evaluations, of trainings that paused and were never published."""
WAITING, RUNNING = "waiting", "running"
FINISHED, STOPPED, FAILED, DIVERGED = "finished", "stopped", "failed", "diverged"
ENDED = (FINISHED, STOPPED, DIVERGED)
"""Trials that no later command runs again. A failed one it does: its cause may be mended by then."""
Trial = dict[str, Any]


class Record:
    """The trials of a sweep, as far as they are known, and how each stands.

    A trial of an earlier command is found again by its name, which is a digest of its settings, and counts if the digest of its
    report, with the stages' versions, is today's. One that the file no longer asks for is kept aside, in case it does again.

    Args:
        folder: `runs/<sweep>`.
        space: of the sweep file.

    Raises:
        UserError: `sweep.json` is damaged.
    """

    def __init__(self, folder: Path, space: Space) -> None:
        self.folder, self.space = folder, space
        self.points: dict[str, Point] = {}
        self.trials: dict[str, Trial] = {}
        before = _read(folder / FILE)
        known = [*before.get("former", []), *before.get("trials", [])]
        self._before: dict[str, Trial] = {trial["name"]: trial for trial in known}
        self._sessions: list[dict[str, Any]] = before.get("sessions", [])
        self.complete = False
        """Whether this command has come to its end."""
        self._started = time.time()
        self._origin = {
            "created": before.get("created") or datetime.now(UTC).isoformat(timespec="seconds"),
            "git_commit": git_commit(),
            "machine": machine(),
        }
        self.sharing: dict[str, Any] = before.get("sharing", {})
        for point in space.points:
            self.add(point)
        if space.sweep.search == "bayesian":
            for name, trial in self._before.items():
                if trial["settings"].keys() == space.sweep.space.keys():
                    self._take_up(name, trial["settings"])

    def _take_up(self, name: str, settings: dict[str, Any]) -> None:
        """A trial of an earlier command of a Bayesian search, if it is of this preset, fixed settings and space."""
        axes = self.space.sweep.space
        if self.space.name_of(settings) != name or not all(
            axes[key].holds(value) for key, value in settings.items()
        ):
            return
        try:
            self.add(self.space.point(settings))
        except UserError as error:
            self._refused(name, settings, str(error))

    def add(self, point: Point) -> Trial:
        """The trial of a point, with what an earlier command has noted; one that had not ended waits again."""
        if point.name in self.trials:
            return self.trials[point.name]
        self.points[point.name] = point
        digest = build_plan(point.config).last.digest
        new = _waiting(point.name, point.settings, point.row)
        trial = {**new, **self._before.get(point.name, {})}
        same = trial["digest"] in (None, digest)  # None: of a file of an older version
        done = trial["status"] in ENDED and same
        trial["digest"] = digest
        if trial["status"] == FINISHED and not (self.folder / point.name / RESULTS).exists():
            done = False
        if not done:
            trial |= {
                "status": WAITING,
                "step": None,
                "cause": None,
                "reports": [],
                "results": None,
            }
        self.trials[point.name] = trial
        return trial

    def refuse(self, settings: dict[str, Any], cause: str) -> Trial:
        """A failed trial without a folder: a point between the ends of its ranges that the configuration refuses."""
        trial = self._refused(self.space.name_of(settings), settings, cause)
        self.write()
        return trial

    def _refused(self, name: str, settings: dict[str, Any], cause: str) -> Trial:
        row = str(settings.get(ROW, self.space.sweep.row))
        self.trials[name] = {**_waiting(name, settings, row), "status": FAILED, "cause": cause}
        return self.trials[name]

    @property
    def due(self) -> list[Point]:
        """What is still to be run, in the order of the search."""
        return [self.points[name] for name, t in self.trials.items() if t["status"] == WAITING]

    @property
    def left(self) -> int:
        """Trials that a command has to run: what is due and, of a Bayesian search, what is still to be proposed.

        A refused point is one of its trials: it would be refused again.
        """
        refused = len(self.trials.keys() - self.points.keys())
        wanted = self.space.sweep.trials or 0
        return max(len(self.due), wanted - len(self.of(*ENDED)) - refused)

    def of(self, *statuses: str) -> list[Trial]:
        return [trial for trial in self.trials.values() if trial["status"] in statuses]

    # -- what happens to a trial ----------------------------------------------------------------------

    def start(self, name: str) -> None:
        self.trials[name] |= {"status": RUNNING, "started": time.time()}
        self.write()

    def report(self, name: str, step: int, value: float) -> None:
        """A trial's mean validation robust accuracy (percent) over its seeds at a rung."""
        self.trials[name]["reports"].append([step, value])
        self.write()

    def finish(self, name: str) -> Trial:
        """Take the results from the trial's folder."""
        return self._end(name, FINISHED, results=summary(read_results(self.folder / name)))

    def stop(self, name: str) -> Trial:
        """It was stopped for what it reported last."""
        return self._end(name, STOPPED, step=self.trials[name]["reports"][-1][0])

    def fail(self, name: str, status: str, cause: str) -> Trial:
        """It ended without results; `status` is `failed` or `diverged`."""
        return self._end(name, status, cause=cause)

    def _end(self, name: str, status: str, **about: Any) -> Trial:
        trial = self.trials[name]
        since = trial.pop("started", None)
        spent = 0.0 if since is None else time.time() - since
        trial |= {"status": status, "seconds": trial["seconds"] + spent, **about}
        self.write()
        return trial

    # -- the file -------------------------------------------------------------------------------------

    def write(self) -> None:
        write_atomic(self.folder / FILE, json.dumps(self.content(), indent=1))

    def content(self) -> dict[str, Any]:
        """All of `sweep.json`."""
        sweep = self.space.sweep
        spent = time.time() - self._started
        own = {"started": self._started, "seconds": spent, "complete": self.complete}
        former = [
            trial
            for name, trial in self._before.items()
            if name not in self.trials and trial["status"] in ENDED
        ]
        return {
            "schema": SCHEMA,
            "kind": "sweep",
            "name": self.folder.name,
            **self._origin,
            "file": {**sweep.written, "set": self.space.fixed},
            "config": self.space.base.model_dump(mode="json", exclude={"runtime"}),
            "seeds": list(sweep.seeds),
            "baselines": list(sweep.baselines),
            "keys": list(sweep.space),
            "trials": list(self.trials.values()),
            "former": former,
            "sessions": [*self._sessions, own],
            "sharing": self.sharing,
        }


def _waiting(name: str, settings: dict[str, Any], row: str) -> Trial:
    """A trial of which nothing is known yet."""
    return {
        "name": name,
        "settings": settings,
        "row": row,
        "status": WAITING,
        "digest": None,
        "step": None,
        "cause": None,
        "seconds": 0.0,
        "reports": [],
        "results": None,
    }


def summary(results: dict[str, Any]) -> dict[str, Any]:
    """What `sweep.json` keeps of a trial's `results.json`: row -> the numbers that settings are compared by."""
    kept = {}
    for row in results["rows"]:
        accuracy = {
            attack: {key: entry[key] for key in ("mean", "low", "high", "by_seed", "seeds")}
            for attack, entry in row["accuracy"].items()
        }
        kept[row["row"]] = {
            "accuracy": accuracy,
            "differences": row["differences"],
            "validation": row["validation"],
            "images": row["images"]["pool"],
            "seconds": row["seconds"]["total"],
            "seconds_train": row["seconds_train"],
            "steps": row["steps"]["total"],
            "flops": row["flops"],
            "memory_bytes": row["peak_memory_bytes"]["max"],
        }
    return kept


def objectives(results: dict[str, Any], row: str) -> dict[str, float]:
    """What a search looks at, of the swept row's entry in a summary. None of it is of the test set."""
    own = results[row]
    return {
        "validation": sum(own["validation"]) / len(own["validation"]),
        "seconds": own["seconds"],
        "images": float(own["images"]),
        "memory": float(own["memory_bytes"]),
        "flops": own["flops"],
    }


def read_histories(folder: Path) -> dict[str, list[dict[str, float]]]:
    """What a trial without results has in `HISTORIES`."""
    path = folder / HISTORIES
    return json.loads(path.read_text()) if path.exists() else {}


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is damaged ({error}). Put an older copy in its place, or delete it: then the same command "
            "writes a new one, from what is in the store; it runs stopped trials again."
        ) from error
    if found.get("schema") != SCHEMA:
        raise UserError(f"{path} has schema {found.get('schema')}, this version writes {SCHEMA}.")
    return found
