"""What befalls hosts while a job works, and what an operator, or Kubernetes, does then."""

from __future__ import annotations

import contextlib
import random
import subprocess
import time
from abc import ABC, abstractmethod
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import psutil

from ssat_ray.leases import LEASE, SCRATCH
from tests.faults.hosts import HEAD, WORKERS, Hosts

Log = dict[str, Any]


class Fault(ABC):
    """One fault, met once.

    Args:
        hosts: that it may meet.
        process: in the command line of who works.
        rng: chooses among several hosts that do.
    """

    ends_the_job = False
    """Whether the command has to be submitted again."""

    def __init__(self, hosts: Hosts, process: str, rng: random.Random) -> None:
        self.hosts, self.process, self.rng = hosts, process, rng

    @abstractmethod
    def hit(self) -> None:
        """Do it, at once."""

    @abstractmethod
    def mend(self) -> Log:
        """What is done about it; returns what to log."""

    def submitted_again(self, command: subprocess.Popen[bytes], folder: Path) -> Log:
        """Told of the second submission as soon as it runs, and where it will write."""
        return {}

    def choose(self) -> int:
        """A host that works."""
        working = self.hosts.working(self.process)
        assert working, f"nobody works as {self.process}"
        return self.rng.choice(working)


class HostLost(Fault):
    """A worker host loses its power, and comes back empty."""

    def hit(self) -> None:
        self.host = self.choose()
        self.hosts.kill(self.host)

    def mend(self) -> Log:
        self.hosts.start_node(self.host)
        return {"host": self.host}


class RayletKilled(Fault):
    """SIGKILL of one process, a worker host's raylet: those that it started are left to see it for themselves."""

    def hit(self) -> None:
        self.host = self.choose()
        for raylet in self.hosts.raylets(self.host):
            raylet.kill()

    def mend(self) -> Log:
        self.hosts.wait_for_end(self.host)
        self.hosts.start_node(self.host)
        return {"host": self.host}


class CutOff(Fault):
    """A worker host's cable is out for 5 s: Ray takes no notice."""

    def hit(self) -> None:
        self.host = self.choose()
        self.node = self.hosts.alive()[self.host]
        self.hosts.set_link(self.host, "down")
        self.begun = time.monotonic()

    def mend(self) -> Log:
        time.sleep(5)
        found = self._connect()
        assert self.hosts.alive().get(self.host) == self.node, "Ray took the host for dead"
        return found

    def _connect(self) -> Log:
        self.hosts.set_link(self.host, "up")
        seconds = time.monotonic() - self.begun
        return {"host": self.host, "cut_off_seconds": round(seconds, 1)}


class CutOffUntilDead(CutOff):
    """It is out until Ray declares the node dead; then the host starts anew."""

    def mend(self) -> Log:
        while self.hosts.alive().get(self.host) == self.node:
            assert time.monotonic() - self.begun < 120, "Ray never declared it dead"
            time.sleep(0.5)
        found = self._connect()
        self.hosts.kill(self.host)
        self.hosts.start_node(self.host)
        return found


class DriverKilled(Fault):
    """SIGKILL of the job's own process on the head; Ray ends what that had started."""

    ends_the_job = True

    def hit(self) -> None:
        found = self.hosts.named(HEAD, "-m ssat_ray")
        assert found, "there is no driver"
        for process in found:
            process.kill()

    def mend(self) -> Log:
        return {"host": HEAD}


class AllLost(Fault):
    """The head's host and the others lose their power; the store stays."""

    ends_the_job = True

    def hit(self) -> None:
        self.hosts.kill(HEAD, *WORKERS)

    def mend(self) -> Log:
        self.hosts.start()
        return {"host": HEAD}


class HeadLost(Fault):
    """The head's host alone is lost; a new cluster gets new nodes, and the old ones are left.

    Those that worked hang meanwhile, as on a slow disk. They go on when the command, submitted again, has written its
    first file of the same artefact: both write into one folder. The old nodes end by themselves, when they have long
    found no head.
    """

    ends_the_job = True

    def hit(self) -> None:
        working = [self.hosts.named(host, self.process) for host in WORKERS]
        self.orphans = [process for found in working for process in found]
        assert self.orphans, f"nobody works as {self.process}"
        for process in self.orphans:
            process.suspend()
        self.raylets = [raylet for host in WORKERS for raylet in self.hosts.raylets(host)]
        self.hosts.kill(HEAD)

    def mend(self) -> Log:
        self.hosts.start()
        return {"host": HEAD}

    def submitted_again(self, command: subprocess.Popen[bytes], folder: Path) -> Log:
        before = _written(folder)
        while _written(folder) == before:
            assert command.poll() is None, "nobody works at it again"
            time.sleep(0.1)
        left = [process for process in self.orphans if process.is_running()]
        assert left, "the old workers ended before new ones were there"
        for process in left:
            process.resume()
        assert command.wait(timeout=600) == 0, "the command that was submitted again failed"
        began = time.monotonic()
        _, stay = psutil.wait_procs(self.raylets, timeout=240)
        assert not stay, "the old nodes never ended"
        waited = round(time.monotonic() - began)
        return {"orphans": len(left), "orphaned_nodes_ended_after_seconds": waited}


def _written(folder: Path) -> dict[str, int]:
    """What is in a folder, and when it was written; leases, which their holder renews, and unfinished files left out."""
    found = {}
    for path in folder.rglob("*"):
        if path.name == LEASE or fnmatch(path.name, SCRATCH):
            continue
        with contextlib.suppress(FileNotFoundError):
            if path.is_file():
                found[str(path)] = path.stat().st_mtime_ns
    return found


KINDS: dict[str, type[Fault]] = {
    "host lost": HostLost,
    "raylet killed": RayletKilled,
    "cut off for 5 s": CutOff,
    "cut off until declared dead": CutOffUntilDead,
    "driver killed": DriverKilled,
    "head and workers started anew": AllLost,
    "head lost, its workers left": HeadLost,
}
