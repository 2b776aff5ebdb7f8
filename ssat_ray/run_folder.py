"""A run's folder, and where its logs grow if the folder is in an object store, whose files cannot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ssat_ray.places import Place, Remote, cache_of, place, write_atomic

MEMORY, LOG, PLAN_LOG = "memory.jsonl", "run.log", "plan.log"
GROWING = (MEMORY, LOG, PLAN_LOG)


@dataclass(frozen=True)
class RunFolder:
    """`<runs>/<name>`.

    Attributes:
        home: where the run's files are kept.
        local: where a command writes those that grow; `home` itself if that is local.
    """

    home: Place
    local: Path

    @classmethod
    def at(cls, runs: str, name: str) -> RunFolder:
        """The run of this name; nothing is made or read."""
        home = place(runs) / name
        return cls(home, cache_of(home) if isinstance(home, Remote) else home)

    @property
    def name(self) -> str:
        return self.home.name

    def prepare(self) -> None:
        """Make the local folder; what an earlier command of this name left in an object store is copied there.

        Raises:
            OSError: it cannot be written.
        """
        self.local.mkdir(parents=True, exist_ok=True)
        if self.home == self.local:
            return
        for name in GROWING:
            kept = self.home / name
            if kept.exists():
                write_atomic(self.local / name, kept.read_bytes())

    def keep(self) -> None:
        """Copy the growing files to where they are kept."""
        if self.home == self.local:
            return
        for path in (self.local / name for name in GROWING):
            if path.exists():
                write_atomic(self.home / path.name, path.read_bytes())
