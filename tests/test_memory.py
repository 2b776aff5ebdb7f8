"""The session's memory: against psutil's own sums, series that survive kills, quarters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ssat_ray.memory import (
    MemoryWatch,
    _private_share,
    read_memory,
    session_memory,
    shared_bytes,
    summarise,
)

MIB = 2**20


def test_children_count_and_agree_with_psutil() -> None:
    program = (
        "import time; kept = bytearray(64 * 2**20); print('ready', flush=True); time.sleep(60)"
    )
    before = session_memory(psutil.Process(), shared_bytes())
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            child.stdout.readline()
            found = session_memory(psutil.Process(), shared_bytes())
            pss = psutil.Process(child.pid).memory_full_info().pss
        finally:
            child.kill()
    assert pss > 64 * MIB
    assert found - before == pytest.approx(pss, abs=16 * MIB)


def test_files_in_shared_memory_count_once(tmp_path: Path) -> None:
    before = shared_bytes()
    path = Path("/dev/shm") / f"ssat-test-{tmp_path.name}"
    base = session_memory(psutil.Process(), before)
    try:
        path.write_bytes(bytes(32 * MIB))
        assert session_memory(psutil.Process(), before) - base > 30 * MIB
    finally:
        path.unlink()


def test_a_series_survives_kills_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "memory.jsonl"
    with MemoryWatch(path, interval=0.05) as watch:
        watch.stage = "score"
        time.sleep(0.4)
    with path.open("a") as file:
        file.write("[1.0, 2")  # cut off by a kill
    with MemoryWatch(path, interval=0.05):
        time.sleep(0.3)
    first, second = read_memory(path)
    assert len(first["samples"]) >= 3 and len(second["samples"]) >= 2
    assert {stage for _, _, stage in first["samples"]} == {"score"}
    seconds = [sample[0] for sample in first["samples"]]
    assert seconds == sorted(seconds)
    assert all(sample[1] > 10 * MIB for sample in first["samples"])


def test_the_watch_goes_on_after_a_full_disk(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, kept, full = (tmp_path / name for name in ("memory.jsonl", "kept", "full"))
    full.symlink_to("/dev/full")
    with MemoryWatch(path, interval=0.03):
        time.sleep(0.2)
        os.link(path, kept)
        os.replace(full, path)
        time.sleep(0.3)
        os.replace(kept, path)
        before = len(read_memory(path)[0]["samples"])
        time.sleep(0.3)
    (session,) = read_memory(path)
    assert len(session["samples"]) > before > 0
    assert caplog.text.count("misses samples: [Errno 28]") == 1


def test_no_file_is_no_session(tmp_path: Path) -> None:
    assert read_memory(tmp_path / "none.jsonl") == []


def test_an_ending_process_counts_nothing() -> None:
    assert _private_share("") == 0
    text = "55 - 7f rollup\nRss: 90 kB\nPss: 40 kB\nPss_Shmem: 10 kB\n"
    assert _private_share(text) == 30 * 1024


def test_quarters() -> None:
    used = [9, 9, 4, 4, 6, 6, 5, 5]
    sessions = [
        {"started": "", "samples": [[0, v, ""] for v in used[:3]]},
        {"started": "", "samples": [[0, v, ""] for v in used[3:]]},
    ]
    assert json.loads(json.dumps(summarise(sessions))) == {
        "peak_bytes": 9,
        "second_quarter_bytes": 4,
        "last_quarter_bytes": 5,
        "rise": 0.25,
    }
    assert summarise(sessions[:1]) is None
