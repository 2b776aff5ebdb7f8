"""Garbage of a store: what no run refers to, and what killed processes left behind."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable

from ssat_ray.errors import UserError
from ssat_ray.leases import LEASE, SCRATCH, lease_of, remove_all
from ssat_ray.places import Place, Remote, folder_bytes, remove_tree
from ssat_ray.store import LEFTOVERS, RAY_TRAIN, RAY_TUNE, RECORD, RUN_FILES, Store

_SCRATCH_FOLDERS = (RAY_TRAIN, RAY_TUNE)


def collect_garbage(
    store: Store, runs: Place, *, dry_run: bool = False, min_age: float = 3600.0
) -> tuple[list[Place], int]:
    """Remove artefacts that no `run.json` under `runs` refers to (it names inputs too), a sweep's trials included.

    Leased artefacts and those changed within `min_age` seconds stay: a starting run may be about to refer
    to them. What killed processes left behind goes too: folders of Ray Train groups and of Ray Tune,
    half-written files older than `min_age`, and in published artefacts without a live lease what their stage had kept while
    it ran. Returns the removed folders, and the bytes of all that was removed.
    """
    keep: set[str] = set()
    for path in (path for pattern in RUN_FILES for path in runs.glob(pattern)):
        try:
            keep.update(json.loads(path.read_text())["digests"])
        except (json.JSONDecodeError, KeyError) as error:
            raise UserError(
                f"{path} is damaged, so what it refers to is unknown; delete it or run its "
                "command again, then collect garbage."
            ) from error
    folders = [f for f in store.root.glob("*/*") if f.is_dir() and len(f.name) == 20]
    if not any(
        lease_of(path).held_by_other() for path in store.root.glob(f"*/*/{LEASE}")
    ):  # no training group can be alive
        folders += [f for name in _SCRATCH_FOLDERS for f in (store.root / name).glob("*")]
    removable = [
        f
        for f in folders
        if f.name not in keep
        and time.time() - changed(f) > min_age
        and not lease_of(f / LEASE).held_by_other()
    ]
    kept = [f for f in folders if f not in set(removable) and f.parent.name not in _SCRATCH_FOLDERS]
    size = sum(folder_bytes(f) for f in removable)
    size += sum(_sweep(f, dry_run, min_age) for f in kept)
    for pattern in (f"*/{SCRATCH}", f"*/*/{SCRATCH}"):
        size += remove_all(_scratch(runs.glob(pattern), min_age), dry_run)
    if not dry_run:
        for folder in removable:
            (folder / RECORD).unlink(missing_ok=True)  # unpublished first: never half an artefact
            remove_tree(folder)
    return removable, size


def changed(folder: Place) -> float:
    """When a folder last changed, seconds since 1970: an object store knows it of its files only."""
    if isinstance(folder, Remote):
        return max((about.st_mtime for _, about in folder.files()), default=0.0)
    return folder.stat().st_mtime


def _sweep(folder: Place, dry_run: bool, min_age: float) -> int:
    """Remove what killed processes left in an artefact's folder that stays; returns the bytes."""
    with lease_of(folder / LEASE).refused() as unleased:
        if not unleased:
            return 0
        found = _scratch(folder.rglob(SCRATCH), min_age)
        if (folder / RECORD).exists():
            old = [folder / name for name in LEFTOVERS if (folder / name).exists()]
            found = old + [path for path in found if path.parent not in old]
        return remove_all(found, dry_run)


def _scratch(found: Iterable[Place], min_age: float) -> list[Place]:
    """Those of the half-written files that nobody can still be writing."""
    old = []
    for path in found:
        with contextlib.suppress(FileNotFoundError):  # it was alive and is renamed by now
            if time.time() - path.stat().st_mtime > min_age:
                old.append(path)
    return old
