"""Garbage of a store: what no run refers to, and what killed processes left behind."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable
from pathlib import Path

from ssat_ray.errors import UserError
from ssat_ray.leases import LEASE, SCRATCH, lease_of, remove_all
from ssat_ray.places import Place, Remote, folder_bytes, remove_tree, write_atomic
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

    Raises:
        UserError: a `run.json` is damaged; then nothing is removed.
    """
    keep = _named(runs)
    folders = [f for f in store.root.glob("*/*") if f.is_dir() and len(f.name) == 20]
    if not any(
        lease_of(path).held_by_other() for path in store.root.glob(f"*/*/{LEASE}")
    ):  # no training group can be alive
        scratch = [f for name in _SCRATCH_FOLDERS for f in (store.root / name).glob("*")]
        folders += [f for f in scratch if f.is_dir()]
    removable = [
        f
        for f in folders
        if f.name not in keep
        and time.time() - changed(f) > min_age
        and not lease_of(f / LEASE).held_by_other()
    ]
    kept = [f for f in folders if f not in set(removable) and f.parent.name not in _SCRATCH_FOLDERS]
    sizes = {f: folder_bytes(f) for f in removable}
    swept = sum(_sweep(f, dry_run, min_age) for f in kept)
    for pattern in (f"*/{SCRATCH}", f"*/*/{SCRATCH}"):
        swept += remove_all(_scratch(runs.glob(pattern), min_age), dry_run)
    removed = removable if dry_run else _remove(removable, runs)
    return removed, swept + sum(sizes[f] for f in removed)


def _named(runs: Place) -> set[str]:
    """Digests that the runs refer to.

    Raises:
        UserError: a run is damaged.
    """
    named: set[str] = set()
    for path in (path for pattern in RUN_FILES for path in runs.glob(pattern)):
        try:
            named.update(json.loads(path.read_text())["digests"])
        except (json.JSONDecodeError, KeyError) as error:
            raise UserError(
                f"{path} is damaged, so what it refers to is unknown; delete it or run its "
                "command again, then collect garbage."
            ) from error
    return named


def _remove(folders: list[Place], runs: Place) -> list[Place]:
    """Remove the folders that still no run names and nobody computes; returns them.

    A run that starts meanwhile names its artefacts first and looks for them then. So they are unpublished, and
    the runs are read again: what one of them names by now is published again, and a run that names the others
    later finds them unpublished and computes them anew.
    """
    keep = _named(runs)  # anew: to judge and to measure them took a while
    unpublished: dict[Place, bytes | None] = {}
    removed = []
    try:
        for folder in (f for f in folders if f.name not in keep):
            with lease_of(folder / LEASE).refused() as unleased:
                if unleased:
                    unpublished[folder] = _unpublish(folder)
        keep = _named(runs)
        for folder in [f for f in unpublished if f.name not in keep]:
            with lease_of(folder / LEASE).refused() as unleased:
                if unleased and not (folder / RECORD).exists():
                    del unpublished[folder]  # never half an artefact
                    remove_all([f for f in folder.iterdir() if f.name != LEASE], dry_run=False)
                    remove_tree(folder)
                    removed.append(folder)
    finally:
        for folder, record in unpublished.items():
            with lease_of(folder / LEASE).refused() as unleased:
                if unleased and record is not None and not (folder / RECORD).exists():
                    write_atomic(folder / RECORD, record)
    return removed


def _unpublish(folder: Place) -> bytes | None:
    """Remove an artefact's record, if it has one, and return it."""
    try:
        record = (folder / RECORD).read_bytes()
    except FileNotFoundError:
        return None
    (folder / RECORD).unlink()
    return record


def changed(folder: Place) -> float:
    """When a folder last changed, seconds since 1970: an object store knows it of its files only."""
    if isinstance(folder, Remote):
        return max((about.st_mtime for _, about in folder.files()), default=0.0)
    return folder.stat().st_mtime


def _sweep(folder: Place, dry_run: bool, min_age: float) -> int:
    """Remove what killed processes left in an artefact's folder that stays; returns the bytes."""
    lease = lease_of(folder / LEASE)
    if dry_run:
        return 0 if lease.held_by_other() else remove_all(_left(folder, min_age), dry_run)
    with lease.refused() as unleased:
        return remove_all(_left(folder, min_age), dry_run) if unleased else 0


def _left(folder: Place, min_age: float) -> list[Place]:
    """Half-written files and, in a published artefact, what its stage had kept; dead claims go by themselves."""
    found = _scratch(folder.rglob(SCRATCH), min_age)
    if (folder / RECORD).exists():
        names = [n for n in LEFTOVERS if n != LEASE or isinstance(folder, Path)]
        old = [folder / name for name in names if (folder / name).exists()]
        found = old + [path for path in found if path.parent not in old]
    return found


def _scratch(found: Iterable[Place], min_age: float) -> list[Place]:
    """Those of the half-written files that nobody can still be writing."""
    old = []
    for path in found:
        with contextlib.suppress(FileNotFoundError):  # it was alive and is renamed by now
            if time.time() - path.stat().st_mtime > min_age:
                old.append(path)
    return old
