"""Memory of a whole session over time: PSS of all its processes on this machine, and the object store's files."""

from __future__ import annotations

import contextlib
import json
import logging
import statistics
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from ssat_ray.places import write_atomic

_LOG = logging.getLogger(__name__)
INTERVAL = 5.0
_SHARED = Path("/dev/shm")


def session_memory(process: psutil.Process, shared_before: int) -> int:
    """Bytes: PSS of a process and its descendants without shared memory, plus the shared memory's files.

    Ray unlinks the object store's file, so its pages are seen as the space that /dev/shm has lost since
    the session began (`shared_before`), whoever has them mapped.
    """
    total = 0
    for one in [process, *process.children(recursive=True)]:
        with contextlib.suppress(OSError, psutil.Error):
            total += _private_share(Path(f"/proc/{one.pid}/smaps_rollup").read_text())
    return total + max(0, shared_bytes() - shared_before)


def shared_bytes() -> int:
    """Space used in /dev/shm."""
    with contextlib.suppress(OSError):
        return int(psutil.disk_usage(str(_SHARED)).used)
    return 0


def _private_share(smaps_rollup: str) -> int:
    """PSS without shared memory, in bytes, from /proc/PID/smaps_rollup; 0 from that of an ending process."""
    fields = {
        line.split(":")[0]: int(line.split()[1])
        for line in smaps_rollup.splitlines()[1:]
        if line.endswith("kB")
    }
    return 1024 * (fields.get("Pss", 0) - fields.get("Pss_Shmem", 0))


class MemoryWatch:
    """Samples the session's memory in a thread and keeps the series in a file, a line a sample.

    Samples that cannot be written, on a full disk for example, are missing from the series.

    Args:
        path: JSON lines: `{"started": ISO time}` opens a session, `[seconds, bytes, stage]` follow.
    """

    def __init__(self, path: Path, interval: float = INTERVAL) -> None:
        self.path, self.interval = path, interval
        self.stage = ""

    def __enter__(self) -> MemoryWatch:
        self._stop = threading.Event()
        self._start, self._process = time.perf_counter(), psutil.Process()
        self._shared_before = shared_bytes()
        kept = self.path.read_text() if self.path.exists() else ""
        opened = json.dumps({"started": datetime.now(UTC).isoformat(timespec="seconds")})
        write_atomic(self.path, kept[: kept.rfind("\n") + 1] + opened + "\n")
        self._thread = threading.Thread(target=self._watch, name="memory-watch", daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        failed = False
        while not self._stop.wait(self.interval):
            used = session_memory(self._process, self._shared_before)
            sample = [round(time.perf_counter() - self._start, 1), used, self.stage]
            try:
                with self.path.open("a") as file:
                    # What failed may have left half a line.
                    file.write(("\n" if failed else "") + json.dumps(sample) + "\n")
                failed = False
            except OSError as error:
                if not failed:
                    _LOG.warning("%s misses samples: %s", self.path, error)
                failed = True

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()


def read_memory(path: Path) -> list[dict[str, Any]]:
    """Sessions: `started`, and `samples` of [seconds, bytes, stage]; none if there is no file."""
    sessions: list[dict[str, Any]] = []
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):  # a killed process's last line
            found = json.loads(line)
            if isinstance(found, dict):
                sessions.append({**found, "samples": []})
            else:
                sessions[-1]["samples"].append(found)
    return sessions


def summarise(sessions: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Peak bytes, medians of the second and the last quarter of all samples, and the last's rise over the second.

    None below 8 samples.
    """
    used = [sample[1] for session in sessions for sample in session["samples"]]
    if len(used) < 8:
        return None
    quarter = len(used) // 4
    second = statistics.median(used[quarter : 2 * quarter])
    last = statistics.median(used[-quarter:])
    return {
        "peak_bytes": max(used),
        "second_quarter_bytes": int(second),
        "last_quarter_bytes": int(last),
        "rise": last / second - 1,
    }
