"""Jobs made of parts (shards, chunks), streamed by Ray Data through a pool of actors, resumed part by part.

An actor writes a part's files first and its note `parts/NNNNN.json` last; the driver publishes a job once
all its notes are there, so a killed run goes on at the first missing part and keeps the time already spent.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import ray
import ray.data
from ray.exceptions import RayTaskError

from ssat_ray.board import board
from ssat_ray.config import RuntimeConfig
from ssat_ray.errors import RunFailed, user_error_in
from ssat_ray.places import remove_tree, write_atomic
from ssat_ray.runtime import Meter, keep_memory, use_threads
from ssat_ray.stages.base import StageContext, Task
from ssat_ray.store import Job, Store

NOTES = "parts"
Note = dict[str, Any]


class PartActor:
    """Base of the actors: subclasses implement `process`."""

    unit = "parts"
    on_gpu = False
    queued: int | None = None
    """Parts that wait at a busy actor, that in hand included. None: as many as Ray Data likes (two).
    1 makes one work queue of all parts: whichever actor is free takes the next one."""

    def __init__(self, tasks: list[Task], num_parts: list[int], runtime: RuntimeConfig) -> None:
        use_threads(1)
        keep_memory()
        self.tasks, self.num_parts, self.runtime = tasks, num_parts, runtime
        self.cache: dict[Any, Any] = {}
        self.board = board()

    @classmethod
    def costs(cls, task: Task, parts: list[int]) -> list[float]:
        """How long each of a job's parts takes beside others, in any unit; the longest are started first."""
        return [0.0] * len(parts)

    def process(self, task: Task, part: int) -> Note:
        """Compute one part and write its files atomically; returns what to note (`rows` at least)."""
        raise TypeError(f"{type(self).__name__} does not implement process()")

    def cached(self, key: Any, make: Callable[[], Any]) -> Any:
        """The last object made for a key: models and clusters are loaded once, not once a part."""
        if key not in self.cache:
            if len(self.cache) >= 8:
                self.cache.clear()
            self.cache[key] = make()
        return self.cache[key]

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        for index, part in zip(batch["task"].tolist(), batch["part"].tolist(), strict=True):
            task = self.tasks[index]
            if not _missing_part(task, part):
                continue  # its actor died after the note, before Ray Data heard of it
            with Meter(fresh=False) as meter:
                note = self.process(task, part)
            note |= {"seconds": meter.seconds, "peak_pss_bytes": meter.peak_pss, "pid": os.getpid()}
            write_atomic(task.folder / NOTES / _note(part), json.dumps(note))
            self.board.add.remote(task.job.label, note["rows"], note.get("of_rows", 0), self.unit)
        return batch


def run_parts(
    actor: type[PartActor],
    jobs: list[Job],
    num_parts: list[int],
    finish: Callable[[Task, list[Note], StageContext], dict[str, Any]],
    context: StageContext,
) -> None:
    """Stream every missing part of every job through the actors and publish each job as it completes.

    Args:
        actor: the class whose `process` computes one part.
        num_parts: parts of each job.
        finish: called on the driver with all notes of a job, in order; writes what is left and returns
            the record to publish. `fit_seconds` in it add to the job's seconds, and
            `fit_peak_pss_bytes` may raise its peak.

    Raises:
        RunFailed: an actor failed; parts already done are kept.
        UserError: an actor found the input at fault, or the disk full.
    """
    tasks = [Task.of(job, context.store) for job in jobs]
    waiting = {
        i: set(_missing(task, n)) for i, (task, n) in enumerate(zip(tasks, num_parts, strict=True))
    }

    def complete(index: int) -> None:
        task = tasks[index]
        notes = [read_note(task, part) for part in range(num_parts[index])]
        record = finish(task, notes, context)
        task.publish(
            {
                "seconds": alone(notes, context.runtime.actors) + record.pop("fit_seconds", 0.0),
                "actor_seconds": sum(n["seconds"] for n in notes),
                "actor_pids": sorted({n["pid"] for n in notes}),
                "blocks": len(notes),
                "rows": sum(n["rows"] for n in notes),
                "peak_pss_bytes": max(
                    _pool_peak(notes, context.runtime.actors), record.pop("fit_peak_pss_bytes", 0)
                ),
                **record,
            }
        )
        remove_tree(task.folder / NOTES)

    ended = [index for index, parts in waiting.items() if not parts]
    for index, part in _stream(actor, tasks, num_parts, waiting, context.runtime):
        waiting[index].discard(part)
        if not waiting[index]:
            ended.append(index)
    # Only now, when the actors are gone: what `finish` starts has their CPUs.
    for index in ended:
        complete(index)


def _stream(
    actor: type[PartActor],
    tasks: list[Task],
    num_parts: list[int],
    waiting: dict[int, set[int]],
    runtime: RuntimeConfig,
) -> Iterator[tuple[int, int]]:
    """Jobs and parts as the actors finish them."""
    items = in_order(actor, tasks, waiting)
    if not items:
        return
    stream = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        actor,
        fn_constructor_args=(tasks, num_parts, runtime),
        batch_size=1,
        num_cpus=1,
        num_gpus=runtime.gpus_per_actor if actor.on_gpu else 0,
        compute=ray.data.ActorPoolStrategy(
            size=min(runtime.actors, len(items)), max_tasks_in_flight_per_actor=actor.queued
        ),
    )
    try:
        for row in stream.iter_rows():
            yield int(row["task"]), int(row["part"])
    except (RayTaskError, ray.exceptions.RayError) as error:
        fault = user_error_in(error)
        if fault is not None:
            raise fault from error
        last = str(error).strip().splitlines()[-1]
        stage = tasks[0].job.stage
        raise RunFailed(f"{stage}: an actor failed: {last}") from error


def in_order(
    actor: type[PartActor], tasks: list[Task], waiting: dict[int, set[int]]
) -> list[dict[str, int]]:
    """Jobs and parts in the order in which the actors take them: by falling cost, then by number.

    With the longest parts first, what an actor waits for at the end is a short one, and the whole takes
    at most 4/3 of the least possible time. Source: Graham 1969, on longest-processing-time-first schedules.
    """
    items = [
        (cost, i, part)
        for i, parts in waiting.items()
        for part, cost in zip(sorted(parts), actor.costs(tasks[i], sorted(parts)), strict=True)
    ]
    items.sort(key=lambda item: -item[0])
    return [{"task": i, "part": part} for _, i, part in items]


def read_note(task: Task, part: int) -> Note:
    note: Note = json.loads((task.folder / NOTES / _note(part)).read_text())
    return note


def _note(part: int) -> str:
    return f"{part:05d}.json"


def _missing(task: Task, num_parts: int) -> list[int]:
    there = {note.name for note in (task.folder / NOTES).glob("*.json")}
    return [part for part in range(num_parts) if _note(part) not in there]


def _missing_part(task: Task, part: int) -> bool:
    return not (task.folder / NOTES / _note(part)).exists()


def _pool_peak(notes: list[Note], num_actors: int) -> int:
    """Sum of the highest peaks of as many actors as live at a time (a resumed job had more)."""
    peaks: dict[int, int] = {}
    for note in notes:
        peaks[note["pid"]] = max(peaks.get(note["pid"], 0), note["peak_pss_bytes"])
    return sum(sorted(peaks.values())[-num_actors:])


def record_of(task: Task, name: str) -> dict[str, Any]:
    """The published record of an input."""
    record = Store.read_record(task.inputs[name])
    assert record is not None, f"{task.job.label} started before its input {name} was published"
    return record


def alone(notes: list[Note], actors: int) -> float:
    """Seconds of a job's parts on so many actors with nothing beside: at least those of its longest part."""
    each = [note["seconds"] for note in notes]
    return max(max(each), sum(each) / min(actors, len(each)))
