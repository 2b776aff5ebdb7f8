"""Several training jobs in one Ray Train worker group: starting a group costs 30 to 40 s, so it is paid once."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Iterable, Iterator
from typing import Any

import psutil
import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.train.torch import TorchTrainer

from ssat_ray.board import board
from ssat_ray.config import RuntimeConfig
from ssat_ray.data.folder import Folder
from ssat_ray.errors import Diverged, RunFailed, Stopped, UserError
from ssat_ray.places import Place, Remote, remove_tree, write_atomic
from ssat_ray.runtime import Meter, release_memory, use_threads
from ssat_ray.stages.base import STATE, Rungs, Session, StageContext, Task, TrainFunction
from ssat_ray.stages.process_group import GroupConfig
from ssat_ray.store import RAY_TRAIN, Job
from ssat_ray.training.cadence import Cadence
from ssat_ray.training.state import Paused, States
from ssat_ray.training.step import Engine
from ssat_ray.training.world import World

FAILED, FAULT = "failed.txt", "fault.txt"
"""Why a job failed: its loss became NaN, or its input is at fault. The others of its group still finish."""
NOTES: dict[str, type[UserError] | type[Diverged]] = {FAULT: UserError, FAILED: Diverged}
GPU_BACKEND = "cpu:gloo,cuda:nccl"
"""Also for tensors on CPUs, such as losses for the log."""
DECISION_SECONDS = 120.0
"""That a group waits at a rung before it goes on without a decision."""
LEAST_BETWEEN_SIZES = 10.0
"""Seconds after which an elastic group looks for room at the earliest; usually two periods of the states, so that one
lies between any two starts and no more than a period's steps are made again."""
DIVERGED = "diverged"
"""Key of a record that has no files: the one recipe of a search whose loss became NaN, and why."""


def run_group(functions: dict[str, TrainFunction], jobs: list[Job], context: StageContext) -> None:
    """Train and publish all jobs, one after another, in one DDP worker group.

    `functions` has the train function of each stage among the jobs.

    A dead worker restarts the group up to `runtime.max_failures` times, a node that is taken away any
    number of times, with as many workers as there is room for; jobs already published are skipped and the
    one under way continues at its last state.

    With `context.rungs`, jobs pause at each rung until all that pause there have reached it. The board is told, and asked
    whether they go on.

    With `context.configurations`, jobs that have failed before are not tried again, as the notes in their folders say, and jobs
    that only configurations with a failed job need are left out.

    Raises:
        RunFailed: the group could not finish. Diverged: a job's loss became NaN (the others still finish).
            A diverging recipe of a search is a result instead: its record says so. Stopped: at a rung.
        UserError: the input of a job is at fault (the others still finish).
    """
    tasks, runtime = [Task.of(job, context.store) for job in jobs], context.runtime
    resources = {"CPU": float(runtime.cpus_per_worker)}
    if runtime.gpus_per_worker:
        resources["GPU"] = runtime.gpus_per_worker
    key = hashlib.sha256("".join(sorted(job.digest for job in jobs)).encode()).hexdigest()[:12]
    name, storage = f"{jobs[0].stage}-{key}-{time.time_ns()}", context.store.root / RAY_TRAIN
    started = storage / name / "started"
    system, path = storage.opened if isinstance(storage, Remote) else (None, str(storage))
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "functions": functions,
            "tasks": tasks,
            "runtime": runtime,
            "rungs": context.rungs,
            "configurations": context.configurations,
            "since": time.time(),
            "started": started,
        },
        torch_config=GroupConfig(backend=GPU_BACKEND if runtime.gpus_per_worker else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=runtime.train_workers,
            use_gpu=runtime.gpus_per_worker > 0,
            resources_per_worker=resources,
            elastic_resize_monitor_interval_s=max(
                LEAST_BETWEEN_SIZES, 120 * runtime.checkpoint_minutes
            ),
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=path,
            storage_filesystem=system,
            failure_config=ray.train.FailureConfig(max_failures=runtime.max_failures),
        ),
    )
    if not context.configurations:
        forget_failures([task.folder for task in tasks])
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit()
    except Exception as error:  # Ray wraps whatever happened in its own types
        _raise_notes(tasks)
        cause = str(error).strip().splitlines() or [type(error).__name__]
        raise RunFailed(f"{jobs[0].stage}: the worker group failed: {cause[-1]}") from error
    finally:
        signal.signal(signal.SIGINT, on_interrupt)  # Ray Train leaves its own handler behind
        remove_tree(storage / name)  # our artefacts hold all there is to keep
    _raise_notes(tasks)
    left = [task.job.label for task in tasks if not task.published]
    if left and context.rungs is not None:
        raise Stopped(f"{', '.join(left)}: stopped at a rung")


def failure_of(folder: Place) -> UserError | Diverged | None:
    """Why the job of this folder failed in a worker group, as its note says; None without a note."""
    for name, kind in NOTES.items():
        if (folder / name).exists():
            return kind((folder / name).read_text())
    return None


def forget_failures(folders: Iterable[Place]) -> None:
    """Remove the notes, so that the jobs of these folders are tried again."""
    for folder in folders:
        for name in NOTES:
            (folder / name).unlink(missing_ok=True)


def _raise_notes(tasks: list[Task]) -> None:
    """The error that the workers' notes ask for, if there are any."""
    failures = [(task.job.label, failure_of(task.folder)) for task in tasks]
    for kind in NOTES.values():
        found = [f"{label}: {error}" for label, error in failures if isinstance(error, kind)]
        if found:
            raise kind("; ".join(found))


def _worker(config: dict[str, Any]) -> None:
    """The loop on each worker."""
    runtime: RuntimeConfig = config["runtime"]
    use_threads(runtime.cpus_per_worker)
    engine = engine_of(runtime)
    world, progress_board = World.current(engine.device), board()
    startup = _startup_seconds(config["since"], config["started"], world)
    for pause, tasks in rounds(config["tasks"], config["rungs"]):
        paused = False
        for task in tasks:
            world.barrier()  # all ranks see the same published jobs
            mates = [other for other in config["tasks"] if other is not task]
            if settled(task, world, runtime) or hopeless(task, mates, config["configurations"]):
                continue
            label = task.job.label

            def progress(done: int, total: int, note: str, label: str = label) -> None:
                if world.rank == 0:
                    progress_board.post.remote(label, done, total, "steps", note)

            release_memory()
            session = Session(
                world=world,
                engine=engine,
                states=states_of(task, runtime),
                due=Cadence(world, runtime.checkpoint_minutes, _preempted).due,
                progress=progress,
                read_retries=runtime.read_retries,
                pause=pause,
            )
            try:
                with Meter() as meter:
                    files, record = config["functions"][task.job.stage](task, session)
            except Paused as found:  # on every rank alike
                paused = True
                if world.rank == 0:
                    progress_board.paused.remote(task.job.digest, found.history)
                continue
            except FloatingPointError as error:  # raised on every rank alike
                if world.rank == 0 and task.job.params.get("search"):
                    task.publish({DIVERGED: str(error), "seconds": meter.seconds})
                    session.states.drop()
                elif world.rank == 0:
                    write_atomic(task.folder / FAILED, str(error))
                    session.states.drop()
                continue
            except (
                UserError
            ) as error:  # maybe on this rank alone: the group starts again without the job
                write_atomic(task.folder / FAULT, str(error))
                raise
            own = (os.getpid(), meter.peak_pss, meter.baseline_pss)
            ranks = [own] * world.size
            if world.size > 1:
                dist.all_gather_object(ranks, own)
            if world.rank == 0:
                written = task.write(files)
                task.publish(
                    {
                        **record,
                        "startup_seconds": startup,
                        "world_size": world.size,
                        "backend": dist.get_backend(),
                        "worker_pids": [pid for pid, _, _ in ranks],
                        "peak_pss_bytes": sum(peak for _, peak, _ in ranks),
                        "baseline_pss_bytes": sum(baseline for _, _, baseline in ranks),
                        "bytes_written": written,
                    }
                )
                session.states.drop()
            startup = 0.0
            ray.train.report({"job": label})
        if pause is not None and not _go_on(tasks, paused, config["rungs"].key, pause, world):
            return


def settled(task: Task, world: World, runtime: RuntimeConfig) -> bool:
    """Whether a group that was started again has nothing left to do for a job.

    The first rank drops the states of a published one: what published it may have been killed before it could.
    """
    if task.published:
        if world.rank == 0:
            states_of(task, runtime).drop()
        return True
    return failure_of(task.folder) is not None


def hopeless(task: Task, others: list[Task], configurations: tuple[frozenset[str], ...]) -> bool:
    """Whether each configuration that needs the job needs another one too that failed: nobody wants it any more."""
    needing = [needed for needed in configurations if task.job.digest in needed]
    mates = [other for other in others if any(other.job.digest in needed for needed in needing)]
    failed = {mate.job.digest for mate in mates if failure_of(mate.folder) is not None}
    return bool(needing) and all(needed & failed for needed in needing)


def rounds(tasks: list[Task], rungs: Rungs | None) -> Iterator[tuple[int | None, list[Task]]]:
    """What is trained, and until which step: those that pause, rung by rung; at last every one to its end."""
    if rungs is not None:
        for step in rungs.steps:
            yield step, [task for task in tasks if task.job.digest in rungs.digests]
    yield None, tasks


def _go_on(tasks: list[Task], paused: bool, key: str, rung: int, world: World) -> bool:
    """Whether to go beyond a rung, on every rank alike: not with a job that failed; with one that paused as is decided.

    Without a decision it goes on.
    """
    decided: bool | None = None
    if world.rank == 0:
        if any(failure_of(task.folder) is not None for task in tasks):
            decided = False
        end, progress_board = time.monotonic() + DECISION_SECONDS, board()
        while paused and decided is None and time.monotonic() < end:
            decided = ray.get(progress_board.decision.remote(key, rung))
            time.sleep(0.0 if decided is not None else 0.2)
    return bool(world.first(float(decided is not False)))


def engine_of(runtime: RuntimeConfig) -> Engine:
    """How a worker computes: what is set, and otherwise what suits its device."""
    on_gpu = runtime.gpus_per_worker > 0
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = (
        False  # float32 is float32
    )
    device = ray.train.torch.get_device() if on_gpu else torch.device("cpu")
    return Engine(
        device=device,
        exact=not on_gpu if runtime.exact is None else runtime.exact,
        micro_batch=runtime.micro_batch,
        compile=on_gpu if runtime.compile is None else runtime.compile,
        channels_last=runtime.channels_last is not False,
    )


def states_of(task: Task, runtime: RuntimeConfig) -> States:
    """Where a job's training states are, on whatever storage; found again by the job's digest."""
    place: str | Place = task.folder / STATE
    if runtime.checkpoints is not None:
        place = Folder(runtime.checkpoints).path(task.job.digest)
    return States(place, runtime.checkpoints_kept)


def _preempted() -> bool:
    """Whether Ray has said that a node of this group is to be taken away."""
    return ray.train.get_preemption_info() is not None


def _startup_seconds(since: float, started: Place, world: World) -> float:
    """Seconds from the driver's request, or from this process's birth in a group that was restarted."""
    seconds = time.time() - since
    if started.exists():
        seconds = time.time() - psutil.Process().create_time()
    world.barrier()
    if world.rank == 0:
        write_atomic(started, "")
    return seconds
