"""A run's folder, and where its logs grow if the folder is in an object store, whose files cannot."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from ssat_ray.places import Place, Remote, cache_of, place, write_atomic

_LOG = logging.getLogger(__name__)
MEMORY, LOG, PLAN_LOG = "memory.jsonl", "run.log", "plan.log"
PAGE = "compare.html"
"""Of a comparison of runs, or of a sweep's trials."""
GROWING = (MEMORY, LOG, PLAN_LOG)
KEEP_SECONDS = 60.0
TERMINATED = 128 + signal.SIGTERM
"""Exit code of a command that was told to end, by `ssat stop` for example."""


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

    @contextlib.contextmanager
    def kept(self, seconds: float = KEEP_SECONDS) -> Iterator[None]:
        """Copy the growing files to where they are kept, every so many seconds and at the end.

        SIGTERM is an end too: it becomes SystemExit, as Ray makes of it once it is connected.
        """
        if self.home == self.local:
            yield
            return
        ended = threading.Event()

        def now_and_then() -> None:
            while not ended.wait(seconds):
                self._keep()

        thread = threading.Thread(target=now_and_then, name="keep-logs", daemon=True)
        before = signal.signal(signal.SIGTERM, _terminate)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self._keep()
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)

    def _keep(self) -> None:
        """A bucket that cannot be written ends no run, whose results are written by others."""
        try:
            for path in (self.local / name for name in GROWING):
                if path.exists():
                    write_atomic(self.home / path.name, path.read_bytes())
        except OSError as error:
            _LOG.warning(
                "the logs in %s could not be copied to %s: %s", self.local, self.home, error
            )


@contextlib.contextmanager
def signals_told() -> Iterator[None]:
    """How Ray's handlers of signals end a process becomes how a command of ours ends on them."""
    try:
        yield
    except SystemExit as end:
        if end.code == 0:  # Ray Train's of SIGINT
            raise KeyboardInterrupt from end
        if end.code == signal.SIGTERM:
            raise SystemExit(TERMINATED) from end
        raise


def _terminate(number: int, frame: FrameType | None) -> None:
    sys.exit(TERMINATED)
