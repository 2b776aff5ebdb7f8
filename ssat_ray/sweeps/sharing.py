"""What the trials of a sweep share, and how often each artefact was computed for them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from ssat_ray.plan import Plan
from ssat_ray.store import Store

COMPUTATIONS = "computations"
"""Folder of a sweep in which each computation of an artefact has a file (`pipeline`)."""
Sharing = dict[str, dict[str, float]]


def sharing(plans: list[Plan], store: Store, computations: Path) -> Sharing:
    """Stage -> artefacts, references to them, computations of them, and seconds with and without sharing.

    Of published artefacts only. `references` are those of trials. `begun` and `finished` are computations by the sweep's
    commands: one that was killed or failed has begun only; one that was killed in the moment after it published
    has finished, although its file does not say so. `seconds` are what the artefacts took, once each; `seconds_unshared`
    what they would have taken if every trial had computed its own.
    """
    begun, marked = _computations(computations)
    found: Sharing = {}
    seen: set[str] = set()
    for plan in plans:
        for job in plan.unique:
            record = store.record(job)
            if record is None:
                continue
            counts = dict.fromkeys(("artefacts", "references", "begun", "finished"), 0)
            times = {"seconds": 0.0, "seconds_unshared": 0.0}
            entry = found.setdefault(job.stage, {**counts, **times})
            seconds = 0.0 if job.params.get("recipe") == "best-of-recipes" else record["seconds"]
            entry["references"] += 1
            entry["seconds_unshared"] += seconds
            if job.digest not in seen:
                seen.add(job.digest)
                entry["artefacts"] += 1
                entry["begun"] += begun[job.digest]
                entry["finished"] += max(marked[job.digest], min(begun[job.digest], 1))
                entry["seconds"] += seconds
    return found


def _computations(folder: Path) -> tuple[Counter[str], Counter[str]]:
    """Computations by digest: those that have begun, and those of them whose files say that they have finished."""
    begun, finished = Counter[str](), Counter[str]()
    for path in folder.glob("*.json"):
        about: dict[str, Any] = json.loads(path.read_text())
        digest = path.name.partition(".")[0]
        begun[digest] += 1
        finished[digest] += "finished" in about
    return begun, finished


def sharing_text(found: Sharing) -> str:
    """Whether everything was computed once, in one line.

    74 artefacts for 412 references of trials; none was computed twice; 3 computations were killed or failed
    """
    names = ("artefacts", "references", "begun", "finished")
    total = {name: int(sum(entry[name] for entry in found.values())) for name in names}
    text = f"{total['artefacts']} artefacts for {total['references']} references of trials"
    again = [
        f"{stage} {entry['finished']:.0f} times for {entry['artefacts']:.0f}"
        for stage, entry in found.items()
        if entry["finished"] > entry["artefacts"]
    ]
    text += f"; computed again: {', '.join(again)}" if again else "; none was computed twice"
    lost = total["begun"] - total["finished"]
    return text + (
        f"; {lost} computation{'s' if lost > 1 else ''} killed or failed" if lost else ""
    )
