"""A sweep in MLflow: a parent run, below it one run a trial and seed; logged again and again until the server takes it."""

from __future__ import annotations

import copy
import json
import os
import queue
import threading
import time
import traceback
import uuid
from pathlib import Path
from typing import Any

from ssat_ray.comparison.naming import short_keys
from ssat_ray.leases import file_lock
from ssat_ray.loading import flatten
from ssat_ray.places import write_atomic
from ssat_ray.plan import build_plan
from ssat_ray.run_folder import PAGE
from ssat_ray.stages.report import REPORT, RESULTS, read_results
from ssat_ray.store import Store, canonical_json
from ssat_ray.sweeps.record import (
    ENDED,
    FAILED,
    FILE,
    FINISHED,
    RUNNING,
    Record,
    Trial,
    read_histories,
)
from ssat_ray.sweeps.server import Server
from ssat_ray.sweeps.show import Lines
from ssat_ray.sweeps.space import Space, title
from ssat_ray.sweeps.tracker import SweepTracker
from ssat_ray.tracking import (
    ARTIFACTS,
    DATABASE,
    QUICK,
    SETTINGS,
    STATE,
    check,
    reason,
    tracking_uri,
    version_tags,
    warning_tags,
)

SWEEP = ""
"""What stands for the sweep as a whole among names of trials."""
RETRY_SECONDS = 5.0
PATIENCE = 300.0
"""Seconds after the last trial until a server that does not answer is given up; the same command tries again."""
GRACE = 30.0
"""Seconds more for what is under way by then."""


class Log:
    """Logs trials as they start and end, from a thread of its own, so that a server that is away holds up nothing.

    What is logged is read from the trial's folder and the store, so it can be logged at any time later. `mlflow.json` says
    what has been. Without `runtime.tracking_uri` it starts a server on the store's database, for as long as the sweep runs.

    Args:
        folder: `runs/<sweep>`.
        lines: told once when the server is away, and when it is back.
    """

    def __init__(self, folder: Path, space: Space, lines: Lines) -> None:
        os.environ.update({name: os.environ.get(name, value) for name, value in QUICK.items()})
        self.folder, self.space, self.lines = folder, space, lines
        runtime = space.base.runtime
        self.store, self.uri = Store(runtime.store), runtime.tracking_uri
        self._server: Server | None = None
        self._tracker: SweepTracker | None = None
        self._failure: str | None = None
        self._queue: queue.Queue[Trial | Record | None] = queue.Queue()
        self._deadline = float("inf")
        self._state = self._read_state()
        self._queued = dict(self._state["trials"])
        self._added = False
        self._thread = threading.Thread(target=self._run, name="mlflow", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Before any work: UserError if the configured server does not answer, or the store can hold no database."""
        if self.uri is not None:
            check(self.uri, self.store)
        else:
            tracking_uri(None, self.store)

    def add(self, trial: Trial) -> None:
        """A trial that has started or ended; what is logged already is not logged again."""
        if self._queued.get(trial["name"]) != _version(trial):
            self._queued[trial["name"]] = _version(trial)
            self._added = True
            self._queue.put(copy.deepcopy(trial))

    def close(self, record: Record | None, patience: float = PATIENCE) -> str | None:
        """Wait until all is logged, the sweep as a whole too if `record` is given; then stop the own server.

        Returns:
            Why something could not be logged, if so.
        """
        if record is not None and (self._added or not self._state.get("finished")):
            self._queue.put(record)
        self._queue.put(None)
        self._deadline = time.monotonic() + patience
        self._thread.join(patience + GRACE)
        if self._thread.is_alive() and self._failure is None:
            self._failure = "it takes too long"
        if self._server is not None:
            self._server.stop()
        return self._failure

    # -- the thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        """Log the latest of every trial; what fails comes last the next time, so that it holds up no other."""
        left: dict[str, Trial | Record] = {}
        more = True
        while more or left:
            while more and (not left or not self._queue.empty()):
                found = self._queue.get()
                if found is None:
                    more = False
                    break
                left[_key(found)] = found
            while left and self._logged(left[key := next(iter(left))]):
                del left[key]
            if not left:
                if self._failure is not None:
                    self.lines.say("tracking_back", "MLflow: it works again")
                self._failure = None
            elif time.monotonic() > self._deadline:
                for other in [name for name in left if name != key]:  # a last time
                    self._logged(left[other])
                return
            else:
                for last in (key, SWEEP):  # the sweep as a whole after all its trials
                    if last in left:
                        left[last] = left.pop(last)
                time.sleep(RETRY_SECONDS)

    def _logged(self, found: Trial | Record) -> bool:
        """Whether it could be."""
        try:
            if isinstance(found, Record):
                self._log_sweep(found)
            else:
                self._log_trial(found)
        except Exception as error:  # MLflow raises whatever its store or server raises
            if self._failure is None:
                traceback.print_exc()
                text = f"MLflow: {reason(error)}; trying again until it works"
                self.lines.say("tracking_failed", text, cause=reason(error))
            self._failure, self._tracker = reason(error), None
            return False
        return True

    def _connect(self) -> SweepTracker:
        """A client of a server that answers."""
        if self._tracker is not None:
            return self._tracker
        uri = self.uri
        if uri is None:
            root = self.store.root
            assert isinstance(root, Path), "checked before any work"
            with file_lock(root / ".mlflow.lock"):  # it may have to make the database
                if self._server is None:
                    log = self.folder / "mlflow.log"
                    self._server = Server(root / DATABASE, root / ARTIFACTS, log)
                    self.lines.say("tracking", f"MLflow: {self._server.uri}", uri=self._server.uri)
                try:
                    self._server.wait()
                except (
                    TimeoutError
                ):  # its port may have been taken meanwhile: the next one has another
                    self._server.stop()
                    self._server = None
                    raise
            uri = self._server.uri
        self._note()  # the key is on disk before the first run is created
        self._tracker = SweepTracker(uri, self.store, self._state["key"], local=self.uri is None)
        return self._tracker

    def _parent(self, tracker: SweepTracker) -> str:
        """The sweep's run."""
        parent = tracker.open(self.folder.name)
        run: str = parent.info.run_id
        if self._state.get("parent") != run:
            config = self.space.base.model_dump(mode="json")
            params = {**flatten({"sweep": self.space.sweep.written}), **flatten(config)}
            tracker.describe(parent, params, {**version_tags(), "kind": "sweep"})
            self._note(parent=run)
        return run

    def _log_trial(self, trial: Trial) -> None:
        tracker = self._connect()
        parent = self._parent(tracker)
        point = self.space.point(trial["settings"])
        plan, folder = build_plan(point.config), self.folder / trial["name"]
        short = short_keys(list(trial["settings"]))  # columns of names are narrow
        named = title({short[key]: value for key, value in trial["settings"].items()})
        for seed in point.config.seeds:
            name = f"{named} seed {seed}"
            run = tracker.open(name, parent, identity=f"{trial['name']} seed {seed}")
            tags = {"trial": trial["name"], "sweep": self.folder.name, "seed": seed}
            tags[SETTINGS] = canonical_json(trial["settings"])
            tags |= {key: trial[key] or "" for key in ("status", "step", "cause")}
            tracker.start_trial(run, point.config, plan, point.row, seed, tags)
            tracker.reports(run.info.run_id, trial["reports"])
            if trial["status"] == FINISHED:
                files = (folder / RESULTS, folder / REPORT)
                results = read_results(folder)
                tracker.describe(run, {}, warning_tags(results))
                tracker.fill_trial(run.info.run_id, plan, point.row, seed, results, files)
            elif trial["status"] != RUNNING:
                train = plan.jobs[point.row, seed, "train"]
                unfinished = read_histories(folder).get(train.digest, [])
                failed = trial["cause"] is not None
                tracker.end_trial(run.info.run_id, train, unfinished, failed)
        trials = {**self._state["trials"], trial["name"]: _version(trial)}
        self._note(trials=trials, finished=False)

    def _log_sweep(self, record: Record) -> None:
        tracker = self._connect()
        parent = self._parent(tracker)
        counts = {status: len(record.of(status)) for status in (*ENDED, FAILED)}
        tracker.finish_sweep(parent, counts, (self.folder / FILE, self.folder / PAGE))
        self._note(finished=True)

    # -- mlflow.json ----------------------------------------------------------------------------------

    def _read_state(self) -> dict[str, Any]:
        """What has been logged to this tracking store, with the key by which its runs are found."""
        path = self.folder / STATE
        state: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        if state.get("uri", "") != self.uri:
            state = {"key": uuid.uuid4().hex, "uri": self.uri, "trials": {}}
        return state

    def _note(self, **changes: Any) -> None:
        self._state |= changes
        write_atomic(self.folder / STATE, json.dumps(self._state))


def _key(found: Trial | Record) -> str:
    """Of what only the latest is logged."""
    return SWEEP if isinstance(found, Record) else str(found["name"])


def _version(trial: Trial) -> str:
    """How a trial stands: what is logged once."""
    return f"{trial['status']} {trial['cause'] or ''}".strip()
