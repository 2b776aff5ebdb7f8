"""What tests compare of an artefact: its files, but for the record and what is there only while it is made."""

from __future__ import annotations

from ssat_ray.places import Place
from ssat_ray.store import LEFTOVERS, RECORD


def files(folder: Place) -> dict[str, bytes]:
    """Path within the artefact -> content."""
    root, found = str(folder).partition("?")[0], {}
    for path in sorted(folder.rglob("*")):
        name = str(path).partition("?")[0].removeprefix(f"{root}/")
        if path.is_file() and name.split("/")[0] not in (RECORD, *LEFTOVERS):
            found[name] = path.read_bytes()
    return found
