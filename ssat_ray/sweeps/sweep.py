"""A whole sweep: what all trials share is computed first, then Ray Tune runs them batch by batch; every end is noted at once."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import os
import shutil
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import TrialScheduler

from ssat_ray import pipeline
from ssat_ray.config import RuntimeConfig
from ssat_ray.errors import RunFailed, UserError
from ssat_ray.leases import LEASE, FileLease
from ssat_ray.memory import MemoryWatch
from ssat_ray.places import cache_of
from ssat_ray.plan import Plan, build_plan
from ssat_ray.run_folder import MEMORY
from ssat_ray.stages.group import forget_failures
from ssat_ray.store import RAY_TUNE, Store, canonical_json
from ssat_ray.sweeps.halving import Halving
from ssat_ray.sweeps.log import Log
from ssat_ray.sweeps.record import ENDED, Record
from ssat_ray.sweeps.runner import context_of
from ssat_ray.sweeps.sharing import COMPUTATIONS, sharing
from ssat_ray.sweeps.show import Lines
from ssat_ray.sweeps.space import BATCH, Point, Space
from ssat_ray.sweeps.trial import trainable
from ssat_ray.sweeps.trials import NUMBER, Trials

LOG, EXPERIMENT, ALONE = "sweep.log", "tune", ".lease"
LAST = ("train", "evaluate", "report")
"""Stages of the batches; all before them are shared work, done first where the points are known."""
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
    plans = {point.name: build_plan(point.config) for point in space.points}
    check_keys(space, plans)
    with _alone(folder, store) as scratch:
        record = Record(folder, space)
        for trial in record.of(*ENDED):
            log.add(trial)
        _build(plans, record)
        if record.left > 0:
            log.check()
            due = {point.name: plans[point.name] for point in record.due}
            for name, plan in due.items():
                pipeline.write_run(record.points[name].config, plan, folder / name)
            standing = build_plan(base)
            jobs = {job.digest: job for plan in (standing, *due.values()) for job in plan.unique}
            forget_failures(map(store.folder, jobs.values()))  # each is tried again, once
            examine(record, due if space.points else {"": standing}, lines)
            record.write()
            with MemoryWatch(folder / MEMORY) as memory, pipeline.session(base, lines) as board:
                memory.stage = "shared stages"
                prepare(record, list(due.values()), lines)
                memory.stage = "trials"
                _tune(Trials(record, plans, board, store, lines, log), scratch)
        _build(plans, record)  # a search has found some since
        record.sharing = sharing(list(plans.values()), store, folder / COMPUTATIONS)
        record.complete = True
        record.write()
    return record


def _build(plans: dict[str, Plan], record: Record) -> None:
    """The plans of trials that have none yet."""
    for name in record.points.keys() - plans.keys():
        plans[name] = build_plan(record.points[name].config)


def check_keys(space: Space, plans: dict[str, Plan]) -> None:
    """Every key of the space changes something of what is swept.

    Args:
        plans: of the space's points, by name.

    Raises:
        UserError: one changes nothing, as `cluster.k` of a row that clusters nothing.
    """
    points, digests = space.varied(), dict[str, frozenset[str]]()
    for point in points:
        jobs = (plans.get(point.name) or build_plan(point.config)).jobs.items()
        digests[point.name] = frozenset(job.digest for (row, _, _), job in jobs if row == point.row)
    for key in space.sweep.space:
        alike: dict[str, dict[str, frozenset[str]]] = {}
        for point in points:
            rest = canonical_json({k: v for k, v in point.settings.items() if k != key})
            value = canonical_json(point.settings[key])
            alike.setdefault(rest, {})[value] = digests[point.name]
        varied = [found for found in alike.values() if len(found) > 1]
        if varied and all(len(set(found.values())) == 1 for found in varied):
            rows = ", ".join(sorted({point.row for point in points}))
            raise UserError(
                f"space: {key} changes nothing of {rows}, so all its trials would be the same; take it out, or sweep "
                "a row that it changes."
            )


@contextlib.contextmanager
def _alone(folder: Path, store: Store) -> Iterator[Path]:
    """Ray Tune's folder for this sweep. As long as it runs, the sweep is leased, and that folder, for `ssat gc`.

    Raises:
        UserError: a live process has it.
    """
    key = hashlib.sha256(str(folder).encode()).hexdigest()[:8]
    root = store.root if isinstance(store.root, Path) else cache_of(store.root)
    scratch = root / RAY_TUNE / f"{folder.name}-{key}"
    with contextlib.ExitStack() as held:
        for lease in (FileLease(folder / ALONE / LEASE), FileLease(scratch / LEASE)):
            try:
                free = lease.acquire()
            except OSError as error:
                raise UserError(f"{lease.path} cannot be locked ({error.strerror}).") from error
            if not free:
                text = f"another process runs the sweep in {folder}; wait for it, or stop it."
                raise UserError(text)
            held.callback(lease.release)
        held.callback(shutil.rmtree, scratch, ignore_errors=True)
        shutil.rmtree(scratch / EXPERIMENT, ignore_errors=True)  # of a command that was killed
        yield scratch


def examine(record: Record, plans: dict[str, Plan], lines: Lines) -> None:
    """Read the input, and look for what only the data shows to be wrong with a point. Needs no Ray.

    Args:
        plans: trial -> its plan; of a Bayesian search, whose trials look for themselves, that of its base.

    Raises:
        UserError: the input or a point is at fault.
    """
    base = record.space.base
    jobs = {job.digest: job for plan in plans.values() for job in plan.unique}
    context = context_of(base, plans.values(), record.folder)
    points = record.points
    configs = {name: points[name].config if name in points else base for name in plans}
    each = [(configs[name], plan) for name, plan in plans.items()]
    pipeline.examine(list(jobs.values()), each, context, lines)


def prepare(record: Record, plans: list[Plan], lines: Lines) -> None:
    """Compute what comes before training for all trials at once: few starts of actors for many jobs.

    A failure is left to the trials that need what failed.
    """
    context = context_of(record.space.base, plans, record.folder)
    jobs = {job.digest: job for plan in plans for job in plan.unique}
    shared = [job for job in jobs.values() if job.stage not in LAST]
    missing = [job for job in shared if context.store.record(job) is None]
    lines.planned(shared, missing)
    try:
        pipeline.execute(missing, context, lines)
    except (RunFailed, UserError) as error:
        traceback.print_exc()
        text = f"shared stages: {error} Trials that need it will fail, the others go on."
        lines.say("shared_failed", text, cause=str(error))


def batches(points: list[Point], size: int, at_once: int) -> list[list[Point]]:
    """The points in their order, in batches of at most `size`, as equal as can be, and enough for `at_once` of them."""
    number = max(math.ceil(len(points) / size), min(at_once, len(points)))
    bounds = [len(points) * i // number for i in range(number + 1)]
    return [points[start:stop] for start, stop in itertools.pairwise(bounds)]


def _tune(trials: Trials, scratch: Path) -> None:
    """Run the trials. Their ends are noted by `trials`; nothing of Ray Tune's own files is kept."""
    os.environ.update({name: os.environ.get(name, value) for name, value in TUNE.items()})
    sweep = trials.record.space.sweep
    bayesian = sweep.search == "bayesian"
    most = sweep.concurrent or concurrent(trials.base.runtime, ray.cluster_resources())
    space: dict[str, Any] = {}
    if not bayesian:
        size = 1 if sweep.one_by_one else sweep.batch or BATCH
        trials.batches = batches(trials.due, size, most)
        space = {NUMBER: tune.grid_search(list(range(len(trials.batches))))}
    searcher: Any = None
    if bayesian:
        from ssat_ray.sweeps.bayesian import search

        searcher = search(trials.record)
    scheduler: TrialScheduler | None = None
    if trials.asha is not None and trials.rungs:
        ended = trials.record.of(*ENDED)
        known = {trial["name"]: trial["reports"] for trial in ended}
        scheduler = Halving(trials.rungs, trials.asha.reduction, known, trials.decide)
    about = {"concurrent": most, "batches": len(trials.batches) or None}
    trials.lines.say("trials", _plan_text(trials, most), **about)
    tune.Tuner(
        trainable(trials.orders(), trials.board),
        param_space=space,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=trials.record.left if bayesian else 1,
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


def _plan_text(trials: Trials, at_once: int) -> str:
    """20 settings x 2 seeds in 4 batches, 1 at once"""
    settings, seeds = trials.record.left, len(trials.record.space.sweep.seeds)
    number = len(trials.batches)
    how = f" in {number} batch{'es' if number > 1 else ''}" if 0 < number < settings else ""
    return f"{settings} settings x {seeds} seed{'s' if seeds > 1 else ''}{how}, {at_once} at once"


def concurrent(config: RuntimeConfig, resources: dict[str, float]) -> int:
    """Batches at once: as often as what one asks for at a time is in the cluster, and 1 at least."""
    needs = {
        "CPU": max(config.most_workers * config.cpus_per_worker, config.actors),
        "GPU": max(
            config.most_workers * config.gpus_per_worker, config.actors * config.gpus_per_actor
        ),
    }
    room = [int(resources.get(name, 0.0) // need) for name, need in needs.items() if need > 0]
    return max(1, min(room))
