"""Content-addressed artefact store: `<store>/<stage>/<digest>/`, published by `stage.json`, leased while computed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ssat_ray.errors import UserError
from ssat_ray.leases import LEASE, lease_of
from ssat_ray.places import Place, place, write_atomic
from ssat_ray.provenance import made_by

RECORD = "stage.json"
RAY_TRAIN, RAY_TUNE = "ray-train", "ray-tune"
"""Folders of what Ray Train and Ray Tune write; nothing of it is needed once they have ended."""
RUN_FILES = ("*/run.json", "*/*/run.json")
"""Where runs are below the runs' folder: a sweep's trials are one folder deeper."""
LEFTOVERS = ("parts", "state", LEASE, "failed.txt")
"""What a stage keeps in its folder while it runs (`stages.parts`, `stages.group`)."""


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: the same text for the same value everywhere."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True)
class Job:
    """One artefact to compute: a stage, what determines its result, and the jobs it reads.

    `params` are what the pipeline varies within one configuration (method, seed, attack, recipe);
    `config` is the part of the configuration that the stage declares; `inputs` are other jobs. `about`,
    for people only, and `location`, where external data lie, do not enter the digest.
    """

    stage: str
    version: int
    params: dict[str, Any]
    config: dict[str, Any]
    inputs: dict[str, Job] = field(default_factory=dict)
    about: str = ""
    location: str | None = None

    @cached_property
    def digest(self) -> str:
        """20 hex digits of SHA-256 over everything that determines the result and nothing else."""
        key = {
            "stage": self.stage,
            "version": self.version,
            "params": self.params,
            "config": self.config,
            "inputs": {name: job.digest for name, job in self.inputs.items()},
        }
        return hashlib.sha256(canonical_json(key).encode()).hexdigest()[:20]

    @property
    def label(self) -> str:
        """Short name for people: `train lcs-km seed 0`."""
        return f"{self.stage} {self.about}".strip()

    def closure(self) -> Iterator[Job]:
        """This job and all it depends on, dependencies first, each once."""
        seen: set[str] = set()
        stack: list[tuple[Job, bool]] = [(self, False)]
        while stack:
            job, expanded = stack.pop()
            if expanded:
                yield job
            elif job.digest not in seen:
                seen.add(job.digest)
                stack.append((job, True))
                stack.extend((j, False) for j in reversed(job.inputs.values()))


class Store:
    """Artefacts on a file system, or in an object store, that every node of the cluster can read and write."""

    def __init__(self, root: str | Place) -> None:
        self.root: Place = place(root)

    def check_writable(self) -> None:
        """Create the store and prove that it can be written; UserError otherwise."""
        probe = self.root / f".probe-{uuid.uuid4().hex}"
        try:
            write_atomic(probe, "")
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"the store {self.root} cannot be written ({error.strerror or error}); "
                "give another folder with --set runtime.store=FOLDER."
            ) from error

    def folder(self, job: Job) -> Place:
        return self.root / job.stage / job.digest

    def record(self, job: Job) -> dict[str, Any] | None:
        """The published record of an artefact, or None while it is unfinished."""
        return self.read_record(self.folder(job))

    @staticmethod
    def read_record(folder: Place) -> dict[str, Any] | None:
        try:
            record: dict[str, Any] = json.loads((folder / RECORD).read_text())
        except FileNotFoundError:
            return None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(
                f"{folder / RECORD} is damaged ({error}); delete this folder and run again."
            ) from error
        return record

    def publish(self, job: Job, record: dict[str, Any]) -> None:
        """Declare the artefact finished; every other file of it must be in place already.

        The record says what made it (`made_by`); its digest does not.
        """
        full = {
            "stage": job.stage,
            "version": job.version,
            "digest": job.digest,
            "params": job.params,
            "config": job.config,
            "inputs": {name: j.digest for name, j in job.inputs.items()},
            "made_by": made_by(),
            **record,
        }
        write_atomic(self.folder(job) / RECORD, json.dumps(full, indent=1, sort_keys=True))

    @contextlib.contextmanager
    def lease(self, job: Job) -> Iterator[bool]:
        """Try to become the one process that computes `job`; yields whether it may.

        The lease is taken only if it is free, renewed from a thread every third of its life, and may be
        taken over once it has expired or its process on this host is gone. What a killed process was
        writing in the folder is removed.
        """
        lease = lease_of(self.folder(job) / LEASE)
        if not lease.acquire():
            yield False
            return
        try:
            yield True
        finally:
            lease.release()
