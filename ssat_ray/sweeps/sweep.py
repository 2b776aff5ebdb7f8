"""A whole sweep: what all trials share is computed first, then Ray Tune runs the trials; every end is noted at once."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import TrialScheduler

from ssat_ray import pipeline, runtime
from ssat_ray.board import start_board
from ssat_ray.config import Config, RuntimeConfig
from ssat_ray.errors import RunFailed, UserError
from ssat_ray.leases import LEASE, FileLease
from ssat_ray.memory import MemoryWatch
from ssat_ray.places import cache_of
from ssat_ray.plan import Plan, build_plan
from ssat_ray.run_folder import MEMORY
from ssat_ray.stages import pool
from ssat_ray.stages.base import StageContext
from ssat_ray.store import RAY_TUNE, Store
from ssat_ray.sweeps.halving import Halving
from ssat_ray.sweeps.log import Log
from ssat_ray.sweeps.record import ENDED, FAILED, STOPPED, Record, Trial
from ssat_ray.sweeps.show import Lines
from ssat_ray.sweeps.space import Point, Space
from ssat_ray.sweeps.trial import CAUSE, STATUS, STEP, VALUE, Order, rungs_of, trainable
from ssat_ray.training.schedule import rule_of

LOG, EXPERIMENT = "sweep.log", "tune"
LAST = ("train", "evaluate", "report")
"""Stages of the trials; all before them are shared work, done first where the points are known."""
TUNE = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # sweep.json and MLflow have it all
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a rung's report and the last one differ
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the command, as everywhere
}


def run(space: Space, folder: Path, lines: Lines, log: Log) -> Record:
    """Run every trial that has not ended, and keep `sweep.json` up to date.

    Args:
        folder: `runs/<sweep>`.
        lines: told what happens.
        log: told which trials have ended; the caller closes it.

    Raises:
        UserError: the input is at fault, or another process runs this sweep. RunFailed: Ray did not start.
            Failures of single trials are in the record instead.
    """
    base = space.base
    store = Store(base.runtime.store)
    with _alone(folder, store) as scratch:
        record = Record(folder, space)
        record.write()
        ended = record.of(*ENDED)
        for trial in ended:
            log.add(trial)
        plans = {name: build_plan(point.config) for name, point in record.points.items()}
        left = (space.sweep.trials or 0) - len(ended)
        if record.due or (space.sweep.search == "bayesian" and left > 0):
            log.check()
            due = {point.name: plans[point.name] for point in record.due}
            for name, plan in due.items():
                pipeline.write_run(record.points[name].config, plan, folder / name)
            examine(record, due or {"": build_plan(base)}, lines)
            lines.connecting()
            with (
                MemoryWatch(folder / MEMORY) as memory,
                runtime.ray_session(base.runtime),
            ):
                board = start_board()
                lines.connected(board)
                try:
                    memory.stage = "shared stages"
                    prepare(base, list(due.values()), lines)
                    memory.stage = "trials"
                    _tune(_Trials(record, plans, board, store, lines, log), scratch, left)
                finally:
                    lines.disconnected()
        for name, point in record.points.items():  # a search has found some since
            plans.setdefault(name, build_plan(point.config))
        record.sharing = sharing(list(plans.values()), store)
        record.write()
    return record


@contextlib.contextmanager
def _alone(folder: Path, store: Store) -> Iterator[Path]:
    """Ray Tune's folder for this sweep, leased as long as the sweep runs.

    Raises:
        UserError: a live process has it.
    """
    key = hashlib.sha256(str(folder).encode()).hexdigest()[:8]
    root = store.root if isinstance(store.root, Path) else cache_of(store.root)
    scratch = root / RAY_TUNE / f"{folder.name}-{key}"
    lease = FileLease(scratch / LEASE)
    if not lease.acquire():
        raise UserError(f"another process runs the sweep in {folder}; wait for it, or stop it.")
    try:
        shutil.rmtree(scratch / EXPERIMENT, ignore_errors=True)  # of a command that was killed
        yield scratch
    finally:
        lease.release()
        shutil.rmtree(scratch, ignore_errors=True)


def examine(record: Record, plans: dict[str, Plan], lines: Lines) -> None:
    """Read the input, and look for what only the data shows to be wrong with a point. Needs no Ray.

    Raises:
        UserError: the input or a point is at fault.
    """
    base = record.space.base
    store = Store(base.runtime.store)
    jobs = {job.digest: job for plan in plans.values() for job in plan.unique}
    missing = [job for job in jobs.values() if store.record(job) is None]
    pool.follow(list(jobs.values()), store)
    context = StageContext(store, base.runtime)
    pipeline.execute([job for job in missing if job.stage in pipeline.ON_DRIVER], context, lines)
    for name, plan in plans.items():
        point = record.points.get(name)
        pipeline.preflight(point.config if point else base, plan, store)


def prepare(base: Config, plans: list[Plan], lines: Lines) -> None:
    """Compute what comes before training for all trials at once: few starts of actors for many jobs.

    A failure is left to the trials that need what failed.
    """
    store = Store(base.runtime.store)
    jobs = {job.digest: job for plan in plans for job in plan.unique}
    shared = [job for job in jobs.values() if job.stage not in LAST]
    missing = [job for job in shared if store.record(job) is None]
    lines.planned(shared, missing)
    try:
        pipeline.execute(missing, StageContext(store, base.runtime), lines)
    except (RunFailed, UserError) as error:
        traceback.print_exc()
        text = f"shared stages: {error} Trials that need it will fail, the others go on."
        lines.say("shared_failed", text, cause=str(error))


class _Trials(tune.Callback):
    """The trials of one session: what each is told, and what is noted of it as Ray Tune goes on."""

    def __init__(
        self,
        record: Record,
        plans: dict[str, Plan],
        board: Any,
        store: Store,
        lines: Lines,
        log: Log,
    ) -> None:
        self.record, self.plans, self.board, self.store = record, plans, board, store
        self.lines, self.log = lines, log
        self.due = record.due
        self.asha = record.space.sweep.asha
        self.rungs = () if self.asha is None else self._rungs()
        self._outcomes: dict[str, dict[str, Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Ray Tune saves its callbacks, with which nobody ever goes on: `sweep.json` is there for that."""
        return {}

    @property
    def base(self) -> Config:
        return self.record.space.base

    def _rungs(self) -> tuple[int, ...]:
        assert self.asha is not None
        lengths = []
        for point in self.due:
            job = next(j for j in self.plans[point.name].unique if j.stage == "labelled")
            labelled = self.store.record(job)
            assert labelled is not None
            rule = rule_of(point.config.train, labelled["rows"]["labelled"])
            lengths.append(rule.expected_steps)
        found = rungs_of(self.asha.grace, self.asha.reduction, max(lengths, default=0))
        if lengths and not found:
            raise UserError(
                f"stopping.asha.grace={self.asha.grace} stops nothing: no training has more than "
                f"{max(lengths)} steps."
            )
        return found

    def orders(self) -> Callable[[dict[str, Any]], Order]:
        """Settings -> what a trial is told; it is called in the trial's process."""
        space, rungs, cwd = self.record.space, self.rungs, Path.cwd()
        parent = self.record.folder
        trained = {
            point.name: {
                job.digest: self.store.folder(job)
                for (row, _, stage), job in self.plans[point.name].jobs.items()
                if (row, stage) == (point.row, "train")
            }
            for point in self.due
            if rungs
        }

        def order_of(config: dict[str, Any]) -> Order:
            point = space.point(config.get("settings", config))
            return Order(point, parent / point.name, cwd, rungs, trained.get(point.name))

        return order_of

    # -- what Ray Tune says ---------------------------------------------------------------------------

    def _point(self, trial: TuneTrial) -> Point:
        return self.record.space.point(trial.config.get("settings", trial.config))

    def on_trial_start(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        point = self._point(trial)
        self.record.add(point)
        self.record.start(point.name)
        self.lines.trial_started(self.record.trials[point.name])

    def on_trial_result(
        self,
        iteration: int,
        trials: list[TuneTrial],
        trial: TuneTrial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        name = self._point(trial).name
        if STATUS in result:
            self._outcomes[name] = result
        elif STEP in result:
            self.record.report(name, int(result[STEP]), float(result[VALUE]))

    def on_trial_complete(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        name = self._point(trial).name
        stopped = self._outcomes[name][STATUS] == STOPPED
        self._ended(self.record.stop(name) if stopped else self.record.finish(name))

    def on_trial_error(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        name = self._point(trial).name
        found = self._outcomes.get(name)
        if found is None:  # not our error: the trial's process is gone
            found = {STATUS: FAILED, CAUSE: f"Ray Tune lost the trial; its error: {_last(trial)}"}
        self._ended(self.record.fail(name, found[STATUS], found[CAUSE]))

    def decide(self, trial: TuneTrial, rung: int, go_on: bool) -> None:
        """What a trial waits for at a rung."""
        ray.get(self.board.decide.remote(self._point(trial).name, rung, go_on))

    def _ended(self, trial: Trial) -> None:
        self.lines.trial_ended(trial, self.record)
        self.log.add(trial)


def _last(trial: TuneTrial) -> str:
    """The last line of a trial's error."""
    path = trial.error_file
    text = Path(path).read_text() if path and Path(path).exists() else ""
    return (text.strip().splitlines() or ["unknown"])[-1][:300]


def _tune(trials: _Trials, scratch: Path, left: int) -> None:
    """Run the trials. Their ends are noted by `trials`; nothing of Ray Tune's own files is kept."""
    os.environ.update({name: os.environ.get(name, value) for name, value in TUNE.items()})
    sweep = trials.record.space.sweep
    bayesian = sweep.search == "bayesian"
    space: dict[str, Any] = {}
    if not bayesian:
        space = {"settings": tune.grid_search([point.settings for point in trials.due])}
    searcher: Any = None
    if bayesian:
        from ssat_ray.sweeps.bayesian import search

        searcher = search(trials.record)
    most = sweep.concurrent or concurrent(trials.base.runtime, ray.cluster_resources())
    scheduler: TrialScheduler | None = None
    if trials.asha is not None and trials.rungs:
        ended = trials.record.of(*ENDED)
        known = {trial["name"]: trial["reports"] for trial in ended}
        scheduler = Halving(trials.rungs, trials.asha.reduction, known, trials.decide)
    trials.lines.say("trials", f"{most} trial(s) at once", concurrent=most)
    tune.Tuner(
        trainable(trials.orders(), trials.board),
        param_space=space,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=left if bayesian else 1,
            max_concurrent_trials=most,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=EXPERIMENT,
            storage_path=str(scratch),
            verbose=0,
            callbacks=[trials],
            failure_config=tune.FailureConfig(max_failures=0),
        ),
    ).fit()


def concurrent(config: RuntimeConfig, resources: dict[str, float]) -> int:
    """Trials at once: as often as what one asks for at a time is in the cluster, and 1 at least."""
    needs = {
        "CPU": max(config.most_workers * config.cpus_per_worker, config.actors),
        "GPU": max(
            config.most_workers * config.gpus_per_worker, config.actors * config.gpus_per_actor
        ),
    }
    room = [int(resources.get(name, 0.0) // need) for name, need in needs.items() if need > 0]
    return max(1, min(room))


def sharing(plans: list[Plan], store: Store) -> dict[str, dict[str, float]]:
    """Stage -> artefacts, how many trials' references they have, and seconds with and without sharing them.

    Of published artefacts only. `seconds` are what the artefacts took, once each; `seconds_unshared` what they would have
    taken if every trial had computed its own.
    """
    found: dict[str, dict[str, float]] = {}
    seen: set[str] = set()
    for plan in plans:
        for job in plan.unique:
            record = store.record(job)
            if record is None:
                continue
            own = {"artefacts": 0, "references": 0, "seconds": 0.0, "seconds_unshared": 0.0}
            entry = found.setdefault(job.stage, own)
            seconds = 0.0 if job.params.get("recipe") == "best-of-recipes" else record["seconds"]
            entry["references"] += 1
            entry["seconds_unshared"] += seconds
            if job.digest not in seen:
                seen.add(job.digest)
                entry["artefacts"] += 1
                entry["seconds"] += seconds
    return found
