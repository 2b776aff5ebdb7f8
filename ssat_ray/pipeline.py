"""Get a plan done: what is missing, stage by stage, in one Ray session; then report and track."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import traceback
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from ssat_ray import runtime, tracking
from ssat_ray.board import start_board
from ssat_ray.config import Config
from ssat_ray.errors import RunFailed, UserError
from ssat_ray.memory import MemoryWatch, read_memory
from ssat_ray.places import Place, write_atomic
from ssat_ray.plan import STAGES, Plan
from ssat_ray.preflight import preflight
from ssat_ray.report.markdown import markdown_table
from ssat_ray.report.selection import render_selection
from ssat_ray.run_folder import MEMORY, RunFolder
from ssat_ray.stages import pool
from ssat_ray.stages.base import StageContext
from ssat_ray.stages.group import run_group
from ssat_ray.stages.report import REPORT, RESULTS, read_results
from ssat_ray.stages.robustbench import write_model_info
from ssat_ray.stages.selection_results import selection_results
from ssat_ray.start import default_name
from ssat_ray.store import Job, Store

ON_DRIVER = ("labelled", "pool", "checkpoint", "ddpm")
"""Stages that need no Ray and show the input's faults at once."""
TOGETHER = ("intermediate", "pretrain")
"""Both read the labelled set only: one worker group, one start."""
BATCHES = [
    *((name,) for name in ON_DRIVER),
    TOGETHER,
    *((name,) for name in STAGES if name not in (*ON_DRIVER, *TOGETHER)),
]
BATCHES.insert(BATCHES.index(("finetune",)) + 1, ("generate",))
"""Stages that run together, in order. `generate` comes twice: guided images need what is made of others."""


class Watcher:
    """What the pipeline tells whoever looks on; the methods do nothing here."""

    def planned(self, wanted: list[Job], missing: list[Job]) -> None: ...

    def stage_started(self, stage: str, jobs: list[Job]) -> None: ...

    def stage_finished(self, stage: str, jobs: list[Job], seconds: float) -> None: ...

    def waiting(self, job: Job) -> None: ...

    def connecting(self) -> None: ...

    def connected(self, board: Any) -> None: ...

    def disconnected(self) -> None: ...


def write_run(config: Config, plan: Plan, folder: Place) -> None:
    """`run.json`: every (row, seed, stage) and its digest. `ssat gc` keeps what it names."""
    content = {
        "config": config.model_dump(mode="json"),
        "digests": sorted(job.digest for job in plan.unique),
        "jobs": [
            {
                "row": row,
                "seed": seed,
                "stage": stage,
                "digest": job.digest,
                "folder": f"{job.stage}/{job.digest}",
            }
            for (row, seed, stage), job in plan.jobs.items()
        ],
        "report": plan.report and plan.report.digest,
    }
    write_atomic(folder / "run.json", json.dumps(content, indent=1))


def execute(
    jobs: list[Job], context: StageContext, watcher: Watcher, memory: MemoryWatch | None = None
) -> None:
    """Compute what is missing, stage by stage; jobs leased by another process are waited for.

    Args:
        memory: told which stage its samples belong to.

    Raises:
        RunFailed, UserError: from the stages; everything published before stays.
    """
    for names in BATCHES:
        pending = [job for job in jobs if job.stage in names and context.store.record(job) is None]
        if memory is not None:
            memory.stage = ", ".join(dict.fromkeys(job.stage for job in pending))
        while ready := _ready(pending, context.store):
            computed = _compute(ready, context, watcher)
            pending = [job for job in pending if context.store.record(job) is None]
            if pending and not computed:
                watcher.waiting(ready[0])
                time.sleep(1.0)
    left = [job.label for job in jobs if context.store.record(job) is None]
    assert not left, f"{left} never had their inputs"


def _ready(jobs: list[Job], store: Store) -> list[Job]:
    """Those that are not published and whose inputs all are."""
    missing = [job for job in jobs if store.record(job) is None]
    return [j for j in missing if all(store.record(i) is not None for i in j.inputs.values())]


def _compute(ready: list[Job], context: StageContext, watcher: Watcher) -> bool:
    """Run the jobs this process could lease; False if another process holds them all."""
    with contextlib.ExitStack() as leases:
        mine = [job for job in ready if leases.enter_context(context.store.lease(job))]
        mine = [job for job in mine if context.store.record(job) is None]  # finished meanwhile
        if not mine:
            return False
        by_stage = {name: [j for j in mine if j.stage == name] for name in STAGES}
        by_stage = {name: jobs for name, jobs in by_stage.items() if jobs}
        for name, jobs in by_stage.items():
            watcher.stage_started(name, jobs)
        start = time.perf_counter()
        try:
            with _counted(mine, context):
                _run_stages(by_stage, context)
        except runtime.RayError as error:
            traceback.print_exc()
            last = str(error).strip().splitlines()[-1]
            raise RunFailed(f"{', '.join(by_stage)} failed: {last}") from error
        except RunFailed:
            traceback.print_exc()  # its message is one line; the log gets the causes
            raise
        unpublished = [job.label for job in mine if context.store.record(job) is None]
        if unpublished:
            raise RunFailed(f"the stage ended without publishing {', '.join(unpublished)}")
        for name, jobs in by_stage.items():
            watcher.stage_finished(name, jobs, time.perf_counter() - start)
    return True


@contextlib.contextmanager
def _counted(jobs: list[Job], context: StageContext) -> Iterator[None]:
    """A file for each computation, marked once the artefact is there: object stores cannot append to one for all."""
    if context.computations is None:
        yield
        return
    about = {"host": socket.gethostname(), "pid": os.getpid(), "begun": time.time()}
    files = [(job, context.computations / f"{job.digest}.{uuid.uuid4().hex}.json") for job in jobs]
    for job, file in files:
        write_atomic(file, json.dumps({"job": job.label, **about}))
    try:
        yield
    finally:
        for job, file in files:
            if context.store.record(job) is not None:
                done = {"job": job.label, **about, "finished": time.time()}
                write_atomic(file, json.dumps(done))


def _run_stages(by_stage: dict[str, list[Job]], context: StageContext) -> None:
    """One stage by its own `run`; several training stages in one worker group."""
    if len(by_stage) == 1:
        ((name, jobs),) = by_stage.items()
        STAGES[name].run(jobs, context)
        return
    functions = {name: STAGES[name].train for name in by_stage}
    everything = [job for jobs in by_stage.values() for job in jobs]
    run_group({n: f for n, f in functions.items() if f is not None}, everything, context)


TABLE = "results.md"


@dataclass(frozen=True)
class Outcome:
    """What `run` leaves behind; `untracked` says why MLflow could not be given the results, if so."""

    folder: Place
    results: dict[str, Any] | None
    computed: int
    total: int
    untracked: str | None = None


def run(
    config: Config,
    plan: Plan,
    watcher: Watcher,
    *,
    name: str | None = None,
    until: str | None = None,
) -> Outcome:
    """Compute everything that the configuration asks for (up to the stage `until`), report it, track it.

    Args:
        plan: of the configuration.

    Raises:
        UserError: the input or the environment is at fault. RunFailed: a stage could not finish.
    """
    store = Store(config.runtime.store)
    folder = RunFolder.at(config.runtime.runs, name or default_name(config))
    write_run(config, plan, folder.home)
    order = list(STAGES)
    wanted = plan.unique if until is None else _up_to(plan, order[: order.index(until) + 1])
    missing = [job for job in wanted if store.record(job) is None]
    if missing and plan.report and until in (None, "report") and tracking.is_due(plan, folder.home):
        tracking.check(config.runtime.tracking_uri, store)
    watcher.planned(wanted, missing)
    context = StageContext(store, config.runtime)
    examine(missing, [(config, plan)], context, watcher)
    if any(job.stage not in ON_DRIVER for job in missing):
        with MemoryWatch(folder.local / MEMORY) as memory, session(config, watcher):
            execute(missing, context, watcher, memory)
    if plan.report is None and all(store.record(job) is not None for job in plan.unique):
        tree, sessions = config.model_dump(mode="json"), read_memory(folder.local / MEMORY)
        results = selection_results(folder.name, tree, plan.jobs, store, sessions)
        write_atomic(folder.home / RESULTS, json.dumps(results, indent=1))
        write_atomic(folder.home / REPORT, render_selection(results))
        return Outcome(folder.home, results, len(missing), len(wanted))
    if plan.report is None or store.record(plan.report) is None:
        return Outcome(folder.home, None, len(missing), len(wanted))
    results = collect(plan.report, store, folder.home)
    outcome = Outcome(folder.home, results, len(missing), len(wanted))
    try:
        tracking.log_run(config, plan, store, results, folder.home)
    except Exception as error:  # MLflow raises whatever its store or server raises
        traceback.print_exc()
        return replace(outcome, untracked=tracking.reason(error))
    return outcome


def run_in_session(
    config: Config, plan: Plan, folder: Place, watcher: Watcher, context: StageContext
) -> dict[str, Any]:
    """The same for a comparison in a Ray session that has a board; memory is not watched, nothing is tracked.

    Args:
        folder: of the run.

    Returns:
        The results.

    Raises:
        UserError, RunFailed: as `run`.
    """
    assert plan.report is not None
    store = context.store
    write_run(config, plan, folder)
    missing = [job for job in plan.unique if store.record(job) is None]
    watcher.planned(plan.unique, missing)
    examine(missing, [(config, plan)], context, watcher)
    execute(missing, context, watcher)
    return collect(plan.report, store, folder)


def collect(report: Job, store: Store, folder: Place) -> dict[str, Any]:
    """Put a published report into its run's folder, with what is made of it; returns the results."""
    for file in (RESULTS, REPORT):
        write_atomic(folder / file, (store.folder(report) / file).read_bytes())
    results = read_results(folder)
    write_atomic(folder / TABLE, markdown_table(results))
    write_model_info(results, folder)
    return results


def examine(
    jobs: list[Job], plans: list[tuple[Config, Plan]], context: StageContext, watcher: Watcher
) -> None:
    """Read the input, and look for what only the data shows to be wrong with a configuration. Needs no Ray.

    Args:
        jobs: of which those that need no Ray are computed.
        plans: each configuration with its plan.

    Raises:
        UserError: the input or a configuration is at fault.
    """
    every = {job.digest: job for _, plan in plans for job in plan.unique}
    pool.follow(list(every.values()), context.store)
    execute([job for job in jobs if job.stage in ON_DRIVER], context, watcher)
    for config, plan in plans:
        preflight(config, plan, context.store)


@contextlib.contextmanager
def session(config: Config, watcher: Watcher) -> Iterator[Any]:
    """A Ray session with a board, which is yielded; the watcher is told of both.

    Raises:
        UserError, RunFailed: as `runtime.ray_session`.
    """
    watcher.connecting()
    with runtime.ray_session(config.runtime):
        board = start_board()
        watcher.connected(board)
        try:
            yield board
        finally:
            watcher.disconnected()


def _up_to(plan: Plan, stages: list[str]) -> list[Job]:
    """The last stage's jobs that need no later stage, and what they need.

    Raises:
        UserError: no row has the stage.
    """
    found: dict[str, Job] = {}
    for job in plan.unique:
        closure = list(job.closure())
        if job.stage == stages[-1] and all(j.stage in stages for j in closure):
            found |= {j.digest: j for j in closure}
    if not found:
        rows = ", ".join(dict.fromkeys(row for row, _, _ in plan.jobs))
        raise UserError(
            f"the rows {rows} have no stage {stages[-1]}: see `ssat show` for rows and pool."
        )
    return list(found.values())
