"""What the process of a batch of trials does: their artefacts together, so that each stage starts once, then each trial's results."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ray

from ssat_ray import pipeline, runtime
from ssat_ray.board import board
from ssat_ray.config import Config
from ssat_ray.errors import Diverged, RunFailed, Stopped, UserError
from ssat_ray.places import write_atomic
from ssat_ray.plan import Plan, build_plan
from ssat_ray.stages.base import Rungs, StageContext
from ssat_ray.stages.group import failure_of
from ssat_ray.store import Store
from ssat_ray.sweeps.record import (
    DIVERGED,
    FAILED,
    FINISHED,
    HISTORIES,
    STOPPED,
    objectives,
    summary,
)
from ssat_ray.sweeps.sharing import COMPUTATIONS
from ssat_ray.sweeps.show import Lines
from ssat_ray.sweeps.space import Point
from ssat_ray.sweeps.trial import CAUSE, STATUS, Order
from ssat_ray.view import quiet_output

LOG = "run.log"
Outcome = dict[str, Any]


def run_trials(order: Order) -> dict[str, Outcome]:
    """Name -> `status`, and `cause` or the objectives, of every trial; an error of a pipeline is a result here."""
    os.chdir(order.cwd)
    runtime.quiet_data()
    if len(order.points) > 1:
        _compute(order)
    return {point.name: _finish(point, order) for point in order.points}


def context_of(
    config: Config, plans: Iterable[Plan], sweep: Path, rungs: Rungs | None = None
) -> StageContext:
    """What the stages of these trials are told; `sweep` is its folder."""
    configurations = tuple(frozenset(job.digest for job in plan.unique) for plan in plans)
    store = Store(config.runtime.store)
    return StageContext(store, config.runtime, rungs, configurations, sweep / COMPUTATIONS)


def _compute(order: Order) -> None:
    """What all trials need, in one go; it is told in the log of the first one.

    Whatever fails is left to the trials that need it, and what the others need goes on without it.
    """
    first, *others = order.points
    for point in others:
        with quiet_output(order.folder / point.name / LOG):
            print(f"computed with the trial {first.name}, whose {LOG} has the rest")
    with quiet_output(order.folder / first.name / LOG):
        watcher = Lines(first.config.runtime.log_format, first.name)
        try:
            left = [(point, build_plan(point.config)) for point in order.points]
            while left and not _execute([plan for _, plan in left], order, watcher):
                before, left = left, [one for one in left if _failure(*one) is None]
                if len(left) == len(
                    before
                ):  # each trial by itself meets it again, and says what it is
                    return
        except Exception:
            traceback.print_exc()


def _execute(plans: list[Plan], order: Order, watcher: Lines) -> bool:
    """Compute what is missing for these plans; whether all of it could be."""
    context = context_of(order.points[0].config, plans, order.folder)
    jobs = {job.digest: job for plan in plans for job in plan.unique}
    missing = [job for job in jobs.values() if context.store.record(job) is None]
    watcher.planned(list(jobs.values()), missing)
    try:
        pipeline.execute(missing, context, watcher)
    except (RunFailed, UserError) as error:
        print(f"{error} The batch goes on without what failed.")
        return False
    return True


def _finish(point: Point, order: Order) -> Outcome:
    """A trial's results in its folder, after whatever is still missing for them."""
    config, folder = point.config, order.folder / point.name
    rungs = None
    if order.rungs:
        rungs = Rungs(point.name, frozenset(order.trained or ()), order.rungs)
    with quiet_output(folder / LOG):
        try:
            plan, watcher = build_plan(config), Lines(config.runtime.log_format, folder.name)
            if (failure := _failure(point, plan)) is not None:
                return failure
            context = context_of(config, [plan], order.folder, rungs)
            results = _results(point, plan, folder, watcher, context)
            if rungs is not None and results[STATUS] != FINISHED:
                keep_histories(rungs, folder)
        except (UserError, RunFailed) as error:
            return {STATUS: FAILED, CAUSE: str(error)}
        except Exception as error:  # ours, and the other trials go on
            traceback.print_exc()
            return {STATUS: FAILED, CAUSE: f"{type(error).__name__}: {error}"}
    return results


def _results(
    point: Point, plan: Plan, folder: Path, watcher: Lines, context: StageContext
) -> Outcome:
    """Run a trial's pipeline to its end.

    Raises:
        UserError, RunFailed: of anything but a worker group.
    """
    try:
        results = pipeline.run_in_session(point.config, plan, folder, watcher, context)
    except Stopped:
        return {STATUS: STOPPED}
    except (UserError, RunFailed):
        if (failure := _failure(point, plan)) is None:
            raise
        return failure
    return {STATUS: FINISHED, **objectives(summary(results), point.row)}


def keep_histories(rungs: Rungs, folder: Path) -> None:
    """What trainings had reported when they paused, for MLflow: the board goes with the session."""
    found = ray.get(board().histories.remote(sorted(rungs.digests)))
    write_atomic(folder / HISTORIES, json.dumps(found))


def _failure(point: Point, plan: Plan) -> Outcome | None:
    """The outcome of a trial that needs what has failed in a worker group; None if there is nothing of the kind.

    It has diverged if a training of the swept row has; of anything else that failed its settings may be innocent.
    """
    store = Store(point.config.runtime.store)
    missing = [job for job in plan.unique if store.record(job) is None]
    found = [(job, failure_of(store.folder(job))) for job in missing]
    failed = [(job, error) for job, error in found if error is not None]
    if not failed:
        return None
    own = {
        job.digest
        for (row, _, stage), job in plan.jobs.items()
        if (row, stage) == (point.row, "train")
    }
    diverged = [(j, e) for j, e in failed if j.digest in own and isinstance(e, Diverged)]
    cause = "; ".join(f"{job.label}: {error}" for job, error in diverged or failed)
    return {STATUS: DIVERGED if diverged else FAILED, CAUSE: cause}
