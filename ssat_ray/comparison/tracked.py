"""Outcomes from MLflow: the nested runs of a comparison or a sweep, through `tracking.reading_client`."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from typing import Any

from ssat_ray.comparison.outcomes import Outcome, Reading, gpu_seconds, settings_of
from ssat_ray.errors import UserError
from ssat_ray.report.words import ATTACKS
from ssat_ray.store import canonical_json
from ssat_ray.tracking import EXPERIMENT, reading_client

PARENT, NAME = "mlflow.parentRunId", "mlflow.runName"
PAGE = 1000
OWN = ("row", "seed", "recipe")
"""Parameters of a nested run that are not settings."""
RUNTIME = ("gpus_per_worker", "train_workers", "gpus_per_actor", "actors")
NEEDED = ("test.pgd", "seconds.total")


def read_tracked(uri: str, wanted: str = "") -> Reading:
    """The outcomes that a tracking store has: one for each parent run, configuration and row.

    Args:
        uri: of the tracking store.
        wanted: name or id of a parent run; empty: all of the experiment.

    Raises:
        UserError: the store does not answer, or has no such run, or a run lacks what is needed.
    """
    client = reading_client(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        raise UserError(f"{uri} has no experiment {EXPERIMENT}: nothing was logged there.")
    runs = _all_runs(client, experiment.experiment_id)
    children: dict[str, list[Any]] = {}
    for run in runs:
        if PARENT in run.data.tags and {"row", "seed"} <= set(run.data.params):
            children.setdefault(run.data.tags[PARENT], []).append(run)
    parents = [run for run in runs if run.info.run_id in children]
    if wanted:
        parents = [_the_one(parents, wanted, uri)]
    if not parents:
        raise UserError(f"{uri} has no parent run with nested runs of rows and seeds.")
    reading = Reading(spent=None)
    for parent in parents:
        reading += _read_parent(parent, children[parent.info.run_id], uri)
    if not reading.outcomes:
        raise UserError(f"{uri}: no nested run of {wanted or 'any parent'} is finished.")
    return reading


def _all_runs(client: Any, experiment: str) -> list[Any]:
    """Oldest first."""
    found, token = [], None
    while True:
        page = client.search_runs(
            [experiment], order_by=["attributes.start_time"], max_results=PAGE, page_token=token
        )
        found += list(page)
        token = page.token
        if not token:
            return found


def _the_one(parents: list[Any], wanted: str, uri: str) -> Any:
    found = [run for run in parents if wanted in (run.info.run_id, run.data.tags.get(NAME))]
    if len(found) == 1:
        return found[0]
    names = ", ".join(sorted({str(run.data.tags.get(NAME)) for run in parents})) or "none"
    if not found:
        raise UserError(f"{uri} has no parent run {wanted}; the parent runs are {names}.")
    ids = ", ".join(run.info.run_id for run in found)
    raise UserError(f"{uri} has {len(found)} parent runs {wanted}; give the id of one: {ids}.")


def _read_parent(parent: Any, children: Iterable[Any], uri: str) -> Reading:
    """The finished nested runs of one parent, by configuration and row."""
    name = str(parent.data.tags.get(NAME, parent.info.run_id))
    groups: dict[tuple[str, str], dict[int, Any]] = {}
    commits, open_runs = set(), 0
    for run in children:
        if run.info.status != "FINISHED":
            open_runs += 1
            continue
        missing = [metric for metric in NEEDED if metric not in run.data.metrics]
        if missing:
            raise UserError(
                f"{uri}: the finished run {run.info.run_id} of {name} has no metric {missing[0]}."
            )
        params = {key: value for key, value in run.data.params.items() if key not in OWN}
        key = (canonical_json(params), run.data.params["row"])
        groups.setdefault(key, {})[int(run.data.params["seed"])] = run
        commits.add(run.data.tags.get("mlflow.source.git.commit", "unknown"))
    warnings = [(name, f"{open_runs} nested runs are not finished and left out")]
    outcomes = [_outcome(row, by_seed, name, uri) for (_, row), by_seed in groups.items()]
    return Reading(
        tuple(outcomes), warnings=tuple(warnings if open_runs else ()), commits=tuple(commits)
    )


def _outcome(row: str, runs: dict[int, Any], parent: str, uri: str) -> Outcome:
    seeds = tuple(sorted(runs))
    data = {seed: runs[seed].data for seed in seeds}
    first = data[seeds[0]]
    flat = {key: value_of(text) for key, text in first.params.items() if key not in OWN}
    accuracy = {
        attack: {
            seed: float(d.metrics[f"test.{attack}"])
            for seed, d in data.items()
            if f"test.{attack}" in d.metrics
        }
        for attack in ATTACKS
    }
    accuracy = {attack: by_seed for attack, by_seed in accuracy.items() if by_seed}
    seconds = {
        name.removeprefix("seconds."): float(value)
        for name, value in first.metrics.items()
        if name.startswith("seconds.")
    }
    peaks = [d.metrics["memory.peak"] for d in data.values() if "memory.peak" in d.metrics]
    sizes = [d.metrics.get("world_size") for d in data.values()]
    runtime = {key: flat.get(f"runtime.{key}") for key in RUNTIME}
    whole = [None if size is None else int(size) for size in sizes]
    known = all(value is not None for value in runtime.values())
    machines = dict.fromkeys(d.tags["machine"] for d in data.values() if "machine" in d.tags)
    return Outcome(
        row=row,
        trials=(_trial(parent, first.tags.get(NAME, ""), row, seeds[0]),),
        source=uri,
        candidate=True,
        settings=settings_of(flat),
        seeds=seeds,
        accuracy=accuracy,
        names={attack: first.tags.get(f"attack.{attack}", attack) for attack in accuracy},
        seconds=seconds,
        labelled=_count(first.metrics.get("images.labelled")),
        pool=_count(first.metrics.get("images.pool")),
        peak_memory=max(peaks, default=None),
        gpu_seconds=gpu_seconds(seconds, runtime, whole) if known else None,
        machines=tuple(machines),
        digests={s: d.tags["digest.train"] for s, d in data.items() if "digest.train" in d.tags},
        test_set=first.tags.get("digest.labelled"),
        lower_bounds=tuple(s for s, d in data.items() if d.metrics.get("hit_max_steps")),
    )


def value_of(text: str) -> Any:
    """The value of a parameter, which MLflow keeps as Python's text of it."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _count(value: float | None) -> int | None:
    return None if value is None else int(value)


def _trial(parent: str, name: str, row: str, seed: int) -> str:
    """`<parent>`, or `<parent>/<trial>` where the nested run is named `<trial> [row] seed <seed>`."""
    rest = name.removesuffix(f"seed {seed}").strip().removesuffix(row).strip()
    return f"{parent}/{rest}" if rest else parent
