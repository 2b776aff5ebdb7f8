"""Folders of runs that failed before anything was computed: `ssat gc` removes them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from ssat_ray.garbage import changed
from ssat_ray.leases import LEASE, lease_of
from ssat_ray.places import Place
from ssat_ray.store import Store

DAY = 86400.0
_LOGS = {"run.json", "run.log", "plan.log", "memory.jsonl"}
"""Files of a run that has no result. A folder with any other file is left alone."""
_COST_NOTHING = {"labelled", "pool", "checkpoint"}
"""Stages whose artefacts copy or register what lies elsewhere."""


def abandoned_runs(runs: Place, store: Store, min_age: float = DAY) -> list[Place]:
    """Folders of `runs` with nothing but logs of a run on `store` that computed nothing and is not running.

    Every file of the folder must be older than `min_age` seconds: a run writes there all the time
    (`memory.jsonl`). No artefact that its `run.json` names may be leased by a live process, or, beyond the
    stages that only register something, have a file in the store: a killed run goes on from these.
    """
    folders: list[Place] = [*runs.glob("*")]
    return [f for f in sorted(folders, key=str) if _is_abandoned(f, store, min_age)]


def _is_abandoned(folder: Place, store: Store, min_age: float) -> bool:
    if (isinstance(folder, Path) and folder.is_symlink()) or not folder.is_dir():
        return False
    files: list[Place] = list(folder.iterdir())
    if not files or not {file.name for file in files} <= _LOGS:
        return False
    if time.time() - max(changed(folder), *(path.stat().st_mtime for path in files)) <= min_age:
        return False
    run = folder / "run.json"
    return not run.exists() or _computed_nothing(json.loads(run.read_text()), store)


def _computed_nothing(run: dict[str, Any], store: Store) -> bool:
    """Whether this is the run's store, and has nothing of it."""
    if Store(run["config"]["runtime"]["store"]).root != store.root:
        return False
    digests = set(run["digests"])
    return not any(_holds_work(path) for path in store.root.glob("*/*") if path.name in digests)


def _holds_work(folder: Place) -> bool:
    if lease_of(folder / LEASE).held_by_other():
        return True
    found = (path for path in folder.rglob("*") if LEASE not in (path.name, path.parent.name))
    files = (path for path in found if path.is_file())
    return folder.parent.name not in _COST_NOTHING and any(files)
