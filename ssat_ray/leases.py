"""Who computes an artefact: one process at a time, on a file system or in an object store."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import logging
import os
import socket
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil

from ssat_ray.errors import UserError
from ssat_ray.places import Place, Remote, folder_bytes, remove_tree, write_atomic

_LOG = logging.getLogger(__name__)
LEASE_SECONDS = 30.0
LEASE = "lease.json"
SCRATCH = ".*.tmp"
"""Names under which `write_atomic` writes on a local file system."""
_CONTENDING_SECONDS = 10.0
"""How long a contender for a remote lease waits for those that have to give way to it."""


def lease_of(path: Place, seconds: float = LEASE_SECONDS) -> Lease:
    """The lease at `path`, of this process: a file, or claims below that name in an object store."""
    return FileLease(path, seconds) if isinstance(path, Path) else RemoteLease(path, seconds)


class Lease(ABC):
    """Names the process that computes an artefact; renewed from a thread every third of its life.

    It may be taken over once it has expired, or its process on this machine is gone. A holder that finds out
    logs it and works on: two that compute one artefact write the same files.
    """

    path: Place

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.owner = uuid.uuid4().hex
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @abstractmethod
    def held_by_other(self) -> bool:
        """Whether a live process holds the lease; only reads."""

    @abstractmethod
    def acquire(self) -> bool:
        """Take the lease if it is free or dead, and keep renewing it."""

    @abstractmethod
    def refused(self) -> contextlib.AbstractContextManager[bool]:
        """Nobody gets the lease inside the `with` block; yields False if somebody has it already."""

    @abstractmethod
    def _renew_once(self) -> bool:
        """Write it anew; False if it is lost."""

    @abstractmethod
    def _give_back(self) -> None:
        """Remove it, unless it is somebody else's by now."""

    def release(self) -> None:
        """Give the lease back, unless it expired and somebody else holds it by now."""
        self._stop.set()
        if self._thread:
            self._thread.join()
        self._give_back()

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def _renew(self) -> None:
        """Until released or lost; a renewal that fails, on a full disk for example, is tried again sooner."""
        failed = False
        while not self._stop.wait(self.seconds / (9 if failed else 3)):
            try:
                if not self._renew_once():
                    _LOG.warning(
                        "%s is lost: it was not renewed within %.0f s, and another process may have it by now. "
                        "Both write the same files.",
                        self.path,
                        self.seconds,
                    )
                    return
                failed = False
            except (OSError, UserError) as error:
                if not failed:
                    _LOG.warning("%s could not be renewed, trying again: %s", self.path, error)
                failed = True

    def _content(self, **more: Any) -> str:
        return json.dumps(
            {
                "owner": self.owner,
                "host": socket.gethostname(),
                "machine": _machine(),
                "pid": os.getpid(),
                "expires": time.time() + self.seconds,
                **more,
            }
        )


class FileLease(Lease):
    """A lease as a file. Judging and taking happen under one file lock."""

    path: Path

    def __init__(self, path: Path, seconds: float = LEASE_SECONDS) -> None:
        super().__init__(seconds)
        self.path = path

    def held_by_other(self) -> bool:
        found = _read(self.path)
        return found is not None and found["owner"] != self.owner and _is_live(found)

    def acquire(self) -> bool:
        """Take the lease if it is free or dead.

        Half-written files in the lease's folder are those of a dead holder, and go.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._guard():
            if self.held_by_other():
                return False
            remove_all(list(self.path.parent.rglob(SCRATCH)), dry_run=False)
            write_atomic(self.path, self._content())
        self._start()
        return True

    @contextlib.contextmanager
    def refused(self) -> Iterator[bool]:
        with self._guard():
            yield not self.held_by_other()

    def _renew_once(self) -> bool:
        with self._guard():
            owned = self._owned()
            if owned:
                write_atomic(self.path, self._content())
            return owned

    def _give_back(self) -> None:
        with self._guard():
            if self._owned():
                self.path.unlink()

    def _owned(self) -> bool:
        found = _read(self.path)
        return found is not None and found["owner"] == self.owner

    def _guard(self) -> contextlib.AbstractContextManager[None]:
        return file_lock(self.path.parent.parent / ".lease.lock")


class RemoteLease(Lease):
    """A lease as one object a contender, for stores that can neither lock nor write on a condition.

    A process writes its claim and then lists all claims. After a listing without another live claim it writes
    that it holds the lease, and lists again: it may have stalled in between until its claim expired and
    another process took the lease. Of two that write at the same moment the later one sees the other (object
    stores list what has been written), so both cannot hold it. The contender with the lowest name waits for
    the others to give way. Renewals are writes of the same kind.

    Args:
        path: claims are objects below this name.
    """

    path: Remote

    def __init__(self, path: Remote, seconds: float = LEASE_SECONDS) -> None:
        super().__init__(seconds)
        self.path = path
        self._own = path / f"{self.owner}.json"

    def held_by_other(self) -> bool:
        return bool(self._others())

    def acquire(self) -> bool:
        if any(other["held"] for other in self._others(remove_dead=True)):
            return False
        write_atomic(self._own, self._content(held=False))
        until = time.monotonic() + _CONTENDING_SECONDS
        while others := self._others(remove_dead=True):
            first = all(self.owner < other["owner"] and not other["held"] for other in others)
            if not first or time.monotonic() > until:
                self._give_back()
                return False
            time.sleep(0.1)
        if self._write_held():
            self._give_back()
            return False
        self._start()
        return True

    @contextlib.contextmanager
    def refused(self) -> Iterator[bool]:
        free = self.acquire()
        try:
            yield free
        finally:
            if free:
                self.release()

    def _renew_once(self) -> bool:
        found = _read(self._own)
        if found is None:
            return False
        others = self._write_held()
        if not others:
            return True
        # Another one may have seen this claim expired. If not, their names decide which of the two goes on.
        lapsed = found["expires"] < time.time()
        if lapsed or self.owner > min(other["owner"] for other in others):
            self._give_back()
            return False
        return True

    def _write_held(self) -> list[dict[str, Any]]:
        """Write that this process holds the lease; returns the claims of others that say so too."""
        write_atomic(self._own, self._content(held=True))
        return [other for other in self._others() if other["held"]]

    def _give_back(self) -> None:
        self._own.unlink(missing_ok=True)

    def _others(self, remove_dead: bool = False) -> list[dict[str, Any]]:
        """Live claims of other processes."""
        live = []
        for claim in self.path.glob("*.json"):
            found = None if claim.name == self._own.name else _read(claim)
            if found is None:
                continue
            if _is_live(found):
                live.append(found)
            elif remove_dead:
                claim.unlink(missing_ok=True)
        return live


def _read(path: Place) -> dict[str, Any] | None:
    """What a lease says; None if there is none, or a damaged one: none of ours is ever half written."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return found


def _is_live(found: dict[str, Any]) -> bool:
    if found["expires"] < time.time():
        return False
    here = (found["host"], found.get("machine")) == (socket.gethostname(), _machine())
    return not here or _alive(found["pid"])


@functools.cache
def _machine() -> str | None:
    """Where process ids mean the same processes: this boot and its namespace of ids; None if the system does not say.

    Host names do not tell it: pods of one name, or in the network of their node, are several machines.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _alive(pid: int) -> bool:
    """Whether the process lives; one that was killed and that its parent has not yet looked after does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """An advisory lock on a file, gone with the process that holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def remove_all(found: Iterable[Place], dry_run: bool) -> int:
    """Remove files and folders; returns their bytes."""
    size = 0
    for path in found:
        with contextlib.suppress(FileNotFoundError):
            is_folder = path.is_dir()
            size += folder_bytes(path) if is_folder else path.stat().st_size
            if dry_run:
                continue
            if is_folder:
                remove_tree(path)
            else:
                path.unlink()
    return size
