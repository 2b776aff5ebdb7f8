"""What a stage is, and what a worker is told of a job."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ssat_ray.config import RuntimeConfig
from ssat_ray.places import Place, write_atomic
from ssat_ray.store import Job, Store
from ssat_ray.training.state import States
from ssat_ray.training.step import Engine
from ssat_ray.training.world import World

STATE = "state"
"""Folder of training states within a job's own."""


@dataclass(frozen=True)
class Rungs:
    """Where trainings pause until somebody decides about them: each of `digests` reaches a rung before any goes on.

    Args:
        key: under which the board has the decisions.
        digests: of the jobs that pause.
        steps: the rungs, ascending; a pause is at the first validation from there on.
    """

    key: str
    digests: frozenset[str]
    steps: tuple[int, ...]


@dataclass(frozen=True)
class StageContext:
    """What a stage needs beside its jobs.

    Args:
        rungs: where trainings pause; None: they do not.
        configurations: of a sweep, the digests that each of them needs. Then what has failed in a worker group is not tried
            again, as long as its note is there, and what only such configurations need is left out (`stages.group`).
        computations: folder in which each computation of a job leaves a file; None: they are not counted.
    """

    store: Store
    runtime: RuntimeConfig
    rungs: Rungs | None = None
    configurations: tuple[frozenset[str], ...] = ()
    computations: Place | None = None


@dataclass(frozen=True)
class Stage:
    """A verb of the pipeline.

    Args:
        name: box, file, verb and store folder.
        version: raised whenever the result for the same inputs changes.
        run: computes and publishes a list of jobs whose inputs are all published. It must be safe to run
            again after a kill at any moment.
        train: what a rank does for one job, in stages that run in a Ray Train worker group; such stages
            can share a group.
    """

    name: str
    version: int
    run: Callable[[list[Job], StageContext], None]
    train: TrainFunction | None = None


@dataclass(frozen=True)
class Task:
    """One job as a worker sees it: the job, its folder, and the folders of its inputs."""

    job: Job
    folder: Place
    inputs: dict[str, Place]
    store_root: Place

    @classmethod
    def of(cls, job: Job, store: Store) -> Task:
        folders = {name: store.folder(j) for name, j in job.inputs.items()}
        return cls(job, store.folder(job), folders, store.root)

    @property
    def seed(self) -> int:
        return int(self.job.params["seed"])

    @property
    def published(self) -> bool:
        return Store.read_record(self.folder) is not None

    def write(self, files: dict[str, bytes]) -> int:
        """Write the artefact's files atomically; returns their bytes."""
        for name, data in files.items():
            write_atomic(self.folder / name, data)
        return sum(map(len, files.values()))

    def publish(self, record: dict[str, Any]) -> None:
        Store(self.store_root).publish(self.job, record)


@dataclass(frozen=True)
class Session:
    """What one rank has for training one job.

    Args:
        world: the ranks.
        engine: how to compute.
        states: where training states are kept; the same place whenever the job is started again.
        due: whether to save one after so many steps; the same answer on every rank.
        progress: called with steps done, steps expected, and a note.
        read_retries: further attempts to read a pool shard.
        pause: steps after which training pauses, at a validation; None: it does not.
    """

    world: World
    engine: Engine
    states: States
    due: Callable[[int], bool]
    progress: Callable[[int, int, str], None]
    read_retries: int = 0
    pause: int | None = None

    @classmethod
    def alone(cls, folder: Place) -> Session:
        """One process on the CPU, without Ray, that saves no state and tells nobody."""
        states = States(folder / STATE)
        return cls(World(), Engine(), states, due=lambda _: False, progress=lambda *_: None)


TrainFunction = Callable[[Task, Session], tuple[dict[str, bytes], dict[str, Any]]]
"""Trains one job; returns the artefact's files and what to record. Runs on every rank.

It raises `training.state.Paused`, on every rank, where the session asks for it.
"""
