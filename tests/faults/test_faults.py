"""Hosts that die, are cut off or start anew while a job works: the same artefacts as on an undisturbed machine.

`make cluster-test` has one fault of each kind. `SSAT_FAULTS=all` (`make chaos`) meets every stage with every
fault. `SSAT_FAULT_FOLDER` names a folder that keeps the undisturbed runs and `faults.jsonl`, which says of each
fault what was hit and how far the stage was; what is in it is not done again.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from ssat_ray.provenance import git_commit
from ssat_ray.store import RECORD
from tests.faults.hosts import HEAD, WORKERS, Hosts
from tests.faults.kinds import KINDS
from tests.faults.work import WORK, Undisturbed, Watch, begin, end_of, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ONE_OF_EACH = [
    ("pretrain", "head and workers started anew"),
    ("generate", "raylet killed"),
    ("refine", "host lost"),
    ("score", "cut off for 5 s"),
    ("finetune", "cut off until declared dead"),
    ("train", "head lost, its workers left"),
    ("evaluate", "driver killed"),
]
ALL = os.environ.get("SSAT_FAULTS") == "all"
IN_TURN = [
    (stage, list(KINDS)[(first + place) % len(KINDS)])
    for first in range(len(KINDS))
    for place, stage in enumerate(WORK)
]
"""Every stage with every fault; however few of them are met, they are of all stages and kinds."""
TRIALS = IN_TURN if ALL else ONE_OF_EACH
EARLIEST, LATEST = 0.1, 0.9


def log_entries(log: Path) -> list[dict[str, Any]]:
    lines = log.read_text().splitlines() if log.exists() else []
    return [json.loads(line) for line in lines]


@contextlib.contextmanager
def ended(process: subprocess.Popen[bytes], hosts: Hosts) -> Iterator[None]:
    """A trial that fails leaves nothing to the next one: its command is killed, and all hosts start anew."""
    try:
        yield
    except BaseException:
        process.kill()
        process.wait()
        hosts.kill(HEAD, *WORKERS)
        for host in WORKERS:
            hosts.set_link(host, "up")
        hosts.start()
        raise


@pytest.mark.parametrize(("stage", "kind"), TRIALS)
def test_a_fault_changes_no_byte(
    stage: str,
    kind: str,
    hosts: Hosts,
    kept: Path,
    undisturbed: Callable[[str], Undisturbed],
    tmp_path: Path,
) -> None:
    log, output = kept / "faults.jsonl", tmp_path / "output.txt"
    if any(entry["stage"] == stage and entry["fault"] == kind for entry in log_entries(log)):
        pytest.skip("in the log already")
    work, rng = WORK[stage], random.Random(f"{stage} {kind}")
    oracle = undisturbed(work.preset)
    expected = oracle.cwd / "store" / oracle.folders[work.job]
    folder = begin(work, oracle, tmp_path)
    hosts.wait_for_cpus()
    command, begun = ("submit", work.verb, "preset.yaml", "--name", "faults"), time.monotonic()
    process = hosts.ssat(tmp_path, *command)
    watch, fault = Watch(work, folder, expected, hosts), KINDS[kind](hosts, work.process, rng)
    with ended(process, hosts):
        wait_until(rng.uniform(0.15, 0.6), watch, process, output)
        struck = time.monotonic()
        fault.hit()
        assert not (folder / RECORD).exists(), "it had ended when the fault came"
        at = watch.done(struck)
        assert EARLIEST <= at / watch.total <= LATEST, (at, watch.total)
        entry = {"stage": stage, "fault": kind, "done": at, "total": watch.total, "unit": work.unit}
        entry |= fault.mend()
        assert (process.wait(timeout=600) != 0) == fault.ends_the_job, end_of(output)
        hosts.wait_for_cpus()
    if fault.ends_the_job:
        process = hosts.ssat(tmp_path, *command)
        with ended(process, hosts):
            entry |= fault.submitted_again(process, folder)
            assert process.wait(timeout=600) == 0, end_of(output)
    assert work.result(folder) == work.result(expected)
    entry |= {"submissions": 1 + fault.ends_the_job, "identical": True}
    entry |= {"after_seconds": round(time.monotonic() - struck)}
    entry |= {"seconds": round(time.monotonic() - begun)}
    entry |= {"date": date.today().isoformat(), "commit": git_commit()}
    with open(log, "a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
    shutil.rmtree(tmp_path / "store")  # of chaos' trials half a gigabyte each
