"""What tests compare of an artefact: its files, but for the record and what is there only while it is made.

A file that a killed writer had not finished stays under a name of its own, until the next holder of a lease or `ssat gc`.
"""

from __future__ import annotations

from fnmatch import fnmatch

from ssat_ray.leases import SCRATCH
from ssat_ray.places import Place
from ssat_ray.store import LEFTOVERS, RECORD


def files(folder: Place) -> dict[str, bytes]:
    """Path within the artefact -> content."""
    root, found = str(folder).partition("?")[0], {}
    for path in sorted(folder.rglob("*")):
        name = str(path).partition("?")[0].removeprefix(f"{root}/")
        if name.split("/")[0] in (RECORD, *LEFTOVERS) or fnmatch(path.name, SCRATCH):
            continue
        if path.is_file():
            found[name] = path.read_bytes()
    return found
