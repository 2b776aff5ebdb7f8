"""A sweep against runs of its trials one by one, each in a store of its own: what sharing and batches save."""

from __future__ import annotations

import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ssat_ray.bench.measure import Comparison, ssat
from ssat_ray.errors import UserError
from ssat_ray.preset import write_preset
from ssat_ray.sweeps.record import FILE, FINISHED

BAR = 1.67
SAMPLE = 3
PLACES = ("store", "runs", "checkpoints", "tracking_uri")
"""Settings of `runtime` that a run by itself has of its own."""


def run(sweep: str, runs: Path, sample: int = SAMPLE) -> Comparison:
    """Run some of the finished trials of a sweep by themselves.

    Args:
        sweep: name of a sweep in `runs` that has ended.
        sample: trials that are run, of all drawn by a fixed seed.

    Raises:
        UserError: there is no such sweep, none of its trials has finished, or one of its commands was killed, so
            that nobody knows how long it took. RunFailed: a run fails.
    """
    path = runs / sweep / FILE
    if not path.is_file():
        raise UserError(f"{sweep}: there is no {path}, so it is no sweep.")
    content: dict[str, Any] = json.loads(path.read_text())
    names = [trial["name"] for trial in content["trials"] if trial["status"] == FINISHED]
    if not names:
        raise UserError(f"{sweep}: none of its trials has finished.")
    if not all(session.get("complete", True) for session in content["sessions"]):
        raise UserError(
            f"{sweep}: one of its commands was killed, and how long that took is not known; measure a sweep that was not."
        )
    chosen, seconds = random.Random(0).sample(names, min(sample, len(names))), []
    for number, name in enumerate(chosen, 1):
        print(f"trial {name} by itself ({number} of {len(chosen)})", file=sys.stderr, flush=True)
        seconds.append(_alone(f"{sweep}/{name}", runs))
    return compare(content, seconds)


def compare(content: dict[str, Any], seconds: list[float]) -> Comparison:
    """The sweep's commands together, without Python's start, against as many runs as it has finished trials.

    Args:
        content: of `sweep.json`.
        seconds: that some of its trials took by themselves.
    """
    trials = sum(trial["status"] == FINISHED for trial in content["trials"])
    ours = sum(session["seconds"] for session in content["sessions"])
    alone = trials * statistics.mean(seconds)
    notes = {
        "share of independent runs": f"{ours / alone:.2f}",
        "runs by themselves": f"{len(seconds)}, {min(seconds):.0f}-{max(seconds):.0f} s each",
        "commands": str(len(content["sessions"])),
    }
    what = f"{content['name']}, {trials} trials of {len(content['seeds'])} seeds"
    return Comparison(what, [ours], [alone], BAR, notes)


def _alone(trial: str, runs: Path) -> float:
    """Wall seconds of a trial's run in a fresh store beside the sweep's, where every node sees it, with the sweep's Ray.

    Relative paths of the configuration are of here, as for the sweep.
    """
    runtime = json.loads((runs / trial / "run.json").read_text())["config"]["runtime"]
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=runs.absolute()) as folder:
        own = {"store": f"{folder}/store", "runs": f"{folder}/runs"}
        kept = {key: value for key, value in runtime.items() if key not in PLACES}
        preset = Path(folder) / "trial.yaml"
        write_preset(trial, runs, preset)
        overrides = [f"runtime.{key}={json.dumps(value)}" for key, value in (kept | own).items()]
        start = time.perf_counter()
        ssat("run", str(preset), Path.cwd(), overrides)
        return time.perf_counter() - start
