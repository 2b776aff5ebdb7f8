"""From what a person names (runs, sweeps, tracking stores) to outcomes that can be compared."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from ssat_ray.addresses import without_password
from ssat_ray.comparison.folders import RESULTS, SWEEP, read_run, read_sweep
from ssat_ray.comparison.outcomes import Reading, merged
from ssat_ray.errors import UserError
from ssat_ray.mistakes import nearest
from ssat_ray.places import Place


def read_sources(names: Iterable[str], runs: Place, store: Place | None = None) -> Reading:
    """Everything that the names stand for, equal outcomes once.

    Args:
        names: of runs, of sweeps, or of single trials (`SWEEP/TRIAL`) in the folder `runs`; paths of such
            folders; tracking URIs, with `#RUN` for one parent run.
        store: of the artefacts, where per-image flags are looked for; None: those of the runs.

    Raises:
        UserError: a name stands for nothing, or it cannot be read.
    """
    reading = Reading()
    for name in dict.fromkeys(names):
        reading += _read(name, runs, store)
    outcomes = merged(reading.outcomes)
    if not any(one.candidate for one in outcomes):
        outcomes = [replace(one, candidate=True) for one in outcomes]
    return replace(reading, outcomes=tuple(outcomes))


def folder_of(name: str, runs: Place) -> Place | None:
    """The folder of a run or a sweep, by its name in `runs` or by its path; None where there is none."""
    for folder in (runs / name, Path(name)):
        if (folder / SWEEP).is_file() or (folder / RESULTS).is_file():
            return folder
    return None


def _read(name: str, runs: Place, store: Place | None) -> Reading:
    if "://" in name:
        from ssat_ray.comparison.tracked import read_tracked

        try:
            without_password(name)
        except ValueError as error:
            raise UserError(f"{error}.") from error
        uri, _, wanted = name.partition("#")
        return read_tracked(uri, wanted)
    folder = folder_of(name, runs)
    if folder is None:
        raise UserError(_unknown(name, runs))
    read = read_sweep if (folder / SWEEP).is_file() else read_run
    return read(folder, name, store)


def _unknown(name: str, runs: Place) -> str:
    if (runs / name).is_dir() or Path(name).is_dir():
        return f"{name} has neither {RESULTS} nor {SWEEP}: it is unfinished, or no run. Run its command again."
    known = sorted(path.parent.name for file in (RESULTS, SWEEP) for path in runs.glob(f"*/{file}"))
    there = f"those in {runs} are {', '.join(known)}" if known else f"there are none in {runs}"
    return f"{name} is no finished run and no sweep{nearest(name, known)}; {there} (--runs)."
