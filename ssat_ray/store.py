"""Content-addressed artefact store: `<store>/<stage>/<digest>/`, published by `stage.json`, leased while computed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ssat_ray.errors import UserError
from ssat_ray.provenance import made_by

_LOG = logging.getLogger(__name__)
LEASE_SECONDS = 30.0
RECORD = "stage.json"
RAY_TRAIN = "ray-train"
LEASE = "lease.json"
LEFTOVERS = ("parts", "state", LEASE, "failed.txt")
"""What a stage keeps in its folder while it runs (`stages.parts`, `stages.group`)."""
SCRATCH = ".*.tmp"
"""Names under which `write_atomic` writes."""


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: the same text for the same value everywhere."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file so that readers see all of it or none (temporary name, fsync, rename).

    Raises:
        UserError: the disk or a quota is full.
        OSError: any other reason; it names `path`.
    """
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(scratch, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            scratch.unlink()
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"no space left on the disk of {path} ({error.strerror}); free some and run the same "
                "command to continue."
            ) from error
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """An advisory lock on a file, gone with the process that holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


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
    """Artefacts on a file system that every node of the cluster can read and write."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).absolute()

    def check_writable(self) -> None:
        """Create the store and prove that it can be written; UserError otherwise."""
        probe = self.root / f".probe-{uuid.uuid4().hex}"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe.write_text("")
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"the store {self.root} cannot be written ({error.strerror}); "
                "give another folder with --set runtime.store=FOLDER."
            ) from error

    def folder(self, job: Job) -> Path:
        return self.root / job.stage / job.digest

    def record(self, job: Job) -> dict[str, Any] | None:
        """The published record of an artefact, or None while it is unfinished."""
        return self.read_record(self.folder(job))

    @staticmethod
    def read_record(folder: Path) -> dict[str, Any] | None:
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

        The lease file is created only if absent, renewed from a thread every third of its life, and
        may be taken over once it has expired or its process on this host is gone. What a killed process
        was writing in the folder is removed.
        """
        lease = Lease(self.folder(job) / LEASE)
        if not lease.acquire():
            yield False
            return
        try:
            yield True
        finally:
            lease.release()

    def collect_garbage(
        self, runs: Path, *, dry_run: bool = False, min_age: float = 3600.0
    ) -> tuple[list[Path], int]:
        """Remove artefacts that no `run.json` under `runs` refers to (it names inputs too).

        Leased artefacts and those changed within `min_age` seconds stay: a starting run may be
        about to refer to them. What killed processes left behind goes too: folders of Ray Train
        groups, half-written files older than `min_age`, and in published artefacts without a live
        lease what their stage had kept while it ran. Returns the removed folders, and the bytes of
        all that was removed.
        """
        keep: set[str] = set()
        for path in runs.glob("*/run.json"):
            try:
                keep.update(json.loads(path.read_text())["digests"])
            except (json.JSONDecodeError, KeyError) as error:
                raise UserError(
                    f"{path} is damaged, so what it refers to is unknown; delete it or run its "
                    "command again, then collect garbage."
                ) from error
        folders = [f for f in self.root.glob("*/*") if f.is_dir() and len(f.name) == 20]
        if not any(
            Lease(path).held_by_other() for path in self.root.glob(f"*/*/{LEASE}")
        ):  # no training group can be alive
            folders += (self.root / RAY_TRAIN).glob("*")
        removable = [
            f
            for f in folders
            if f.name not in keep
            and time.time() - f.stat().st_mtime > min_age
            and not Lease(f / LEASE).held_by_other()
        ]
        kept = [f for f in folders if f not in set(removable) and f.parent.name != RAY_TRAIN]
        size = sum(folder_bytes(f) for f in removable)
        size += sum(self._sweep(f, dry_run, min_age) for f in kept)
        size += _remove(_scratch(runs.glob(f"*/{SCRATCH}"), min_age), dry_run)
        if not dry_run:
            for folder in removable:
                (folder / RECORD).unlink(
                    missing_ok=True
                )  # unpublished first: never half an artefact
                shutil.rmtree(folder)
        return removable, size

    def _sweep(self, folder: Path, dry_run: bool, min_age: float) -> int:
        """Remove what killed processes left in an artefact's folder that stays; returns the bytes."""
        with Lease(folder / LEASE).refused() as unleased:
            if not unleased:
                return 0
            found = _scratch(folder.rglob(SCRATCH), min_age)
            if (folder / RECORD).exists():
                old = [folder / name for name in LEFTOVERS if (folder / name).exists()]
                found = old + [path for path in found if not set(old) & set(path.parents)]
            return _remove(found, dry_run)


class Lease:
    """A file that names the process computing an artefact."""

    def __init__(self, path: Path, seconds: float = LEASE_SECONDS) -> None:
        self.path = path
        self.seconds = seconds
        self.owner = uuid.uuid4().hex
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def _content(self) -> str:
        return json.dumps(
            {
                "owner": self.owner,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "expires": time.time() + self.seconds,
            }
        )

    def held_by_other(self) -> bool:
        """Whether a live process holds the lease."""
        try:
            found = json.loads(self.path.read_text())
        except FileNotFoundError:
            return False
        except json.JSONDecodeError:  # no lease of ours is ever half written
            return False
        if found["owner"] == self.owner or found["expires"] < time.time():
            return False
        return not (found["host"] == socket.gethostname() and not _alive(found["pid"]))

    def acquire(self) -> bool:
        """Take the lease if it is free or dead. Judging and taking happen under one file lock.

        Half-written files in the lease's folder are those of a dead holder, and go.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._guard():
            if self.path.exists() and self.held_by_other():
                return False
            _remove(list(self.path.parent.rglob(SCRATCH)), dry_run=False)
            write_atomic(self.path, self._content())
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()
        return True

    @contextlib.contextmanager
    def refused(self) -> Iterator[bool]:
        """Nobody gets the lease inside the `with` block; yields False if somebody has it already."""
        with self._guard():
            yield not self.held_by_other()

    def release(self) -> None:
        """Give the lease back, unless it expired and somebody else holds it by now."""
        self._stop.set()
        if self._thread:
            self._thread.join()
        with self._guard():
            if self._owned():
                self.path.unlink()

    def _renew(self) -> None:
        """Until released or lost; a renewal that fails, on a full disk for example, is tried again sooner."""
        failed = False
        while not self._stop.wait(self.seconds / (9 if failed else 3)):
            try:
                with self._guard():
                    if not self._owned():
                        return
                    write_atomic(self.path, self._content())
                failed = False
            except (OSError, UserError) as error:
                if not failed:
                    _LOG.warning("%s could not be renewed, trying again: %s", self.path, error)
                failed = True

    def _owned(self) -> bool:
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            return bool(json.loads(self.path.read_text())["owner"] == self.owner)
        return False

    def _guard(self) -> contextlib.AbstractContextManager[None]:
        return file_lock(self.path.parent.parent / ".lease.lock")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _scratch(found: Iterable[Path], min_age: float) -> list[Path]:
    """Those of the half-written files that nobody can still be writing."""
    old = []
    for path in found:
        with contextlib.suppress(FileNotFoundError):  # it was alive and is renamed by now
            if time.time() - path.stat().st_mtime > min_age:
                old.append(path)
    return old


def _remove(found: list[Path], dry_run: bool) -> int:
    """Remove files and folders; returns their bytes."""
    size = 0
    for path in found:
        with contextlib.suppress(FileNotFoundError):
            size += folder_bytes(path) if path.is_dir() else path.stat().st_size
            if dry_run:
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    return size


def folder_bytes(folder: Path, names: Iterable[str] = ("*",)) -> int:
    """Bytes of the files in a folder that match any of the patterns."""
    return sum(p.stat().st_size for name in names for p in folder.rglob(name) if p.is_file())
