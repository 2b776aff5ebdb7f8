"""Outcomes from MLflow: the nested runs of a comparison or a sweep, through `tracking.reading_client`."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable
from typing import Any

from ssat_ray.comparison.outcomes import (
    BASELINES,
    VALIDATION,
    Outcome,
    Reading,
    Unfinished,
    gpu_seconds,
    settings_of,
    stopped_text,
)
from ssat_ray.config import ROWS
from ssat_ray.errors import UserError
from ssat_ray.report.words import ATTACKS
from ssat_ray.store import canonical_json
from ssat_ray.tracking import EXPERIMENT, SETTINGS, WARNINGS, reading_client

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
    """The finished nested runs of one parent, by configuration and row, and the trials that have none."""
    name = f"{uri}#{parent.data.tags.get(NAME, parent.info.run_id)}"
    of_sweep = parent.data.tags.get("kind") == "sweep"
    keys: dict[str, None] = {}
    warnings = _warnings(name, parent)
    groups: dict[tuple[str, str], dict[int, Any]] = {}
    unfinished: dict[str, Unfinished] = {}
    commits: dict[str, None] = {}
    for run in children:
        params, tags = run.data.params, run.data.tags
        swept = json.loads(tags.get(SETTINGS, "{}"))
        keys |= dict.fromkeys(swept)
        warnings += _warnings(_trial(name, run), run)
        if run.info.status != "FINISHED":
            trial = _trial(name, run)
            status = tags.get("status", run.info.status.lower())
            unfinished[trial] = Unfinished(trial, swept, status, tags.get("cause") or _stopped(run))
            continue
        missing = [metric for metric in NEEDED if metric not in run.data.metrics]
        if missing:
            raise UserError(
                f"{name}: its finished nested run {run.info.run_id} has no metric {missing[0]}."
            )
        settings = {key: value for key, value in params.items() if key not in OWN}
        key = (canonical_json(settings), params["row"])
        groups.setdefault(key, {})[int(params["seed"])] = run
        commits[tags.get("mlflow.source.git.commit", "unknown")] = None
    outcomes = []
    for (_, own), runs in groups.items():
        for row in (own, *(row for row in ROWS if row != own)):
            prefix = "" if row == own else f"{row}."
            if all(f"{prefix}test.pgd" in run.data.metrics for run in runs.values()):
                candidate = row == own if of_sweep else row not in BASELINES
                outcomes.append(_outcome(row, prefix, runs, candidate, name, uri))
    return Reading(
        tuple(outcomes),
        tuple(unfinished.values()),
        tuple(keys),
        tuple(dict.fromkeys(warnings)),
        spent=None,
        commits=tuple(commits),
    )


def _stopped(run: Any) -> str:
    """Where early stopping ended it, and with what; empty if it did not."""
    reached = run.data.metrics.get("val_pgd.mean")
    if not run.data.tags.get("step") or reached is None:
        return ""
    return stopped_text(int(run.data.tags["step"]), reached)


def _warnings(name: str, run: Any) -> list[tuple[str, str]]:
    return [(name, line) for line in run.data.tags.get(WARNINGS, "").splitlines()]


def _outcome(
    row: str, prefix: str, runs: dict[int, Any], candidate: bool, parent: str, uri: str
) -> Outcome:
    """One row of nested runs by seed; `prefix` is that of its metrics, empty for the runs' own row."""
    seeds = tuple(sorted(runs))
    metrics = {
        seed: {
            key.removeprefix(prefix): value
            for key, value in runs[seed].data.metrics.items()
            if key.startswith(prefix)
        }
        for seed in seeds
    }
    first, tags = metrics[seeds[0]], {seed: runs[seed].data.tags for seed in seeds}
    params = runs[seeds[0]].data.params
    flat = {key: value_of(text) for key, text in params.items() if key not in OWN}
    accuracy = {
        attack: {s: float(m[f"test.{attack}"]) for s, m in metrics.items() if f"test.{attack}" in m}
        for attack in ATTACKS
    }
    accuracy[VALIDATION] = {
        s: float(m["validation.pgd"]) for s, m in metrics.items() if "validation.pgd" in m
    }
    accuracy = {attack: by_seed for attack, by_seed in accuracy.items() if by_seed}
    seconds = {
        key.removeprefix("seconds."): float(value)
        for key, value in first.items()
        if key.startswith("seconds.")
    }
    peaks = [m["memory.peak"] for m in metrics.values() if "memory.peak" in m]
    sizes = [int(m["world_size"]) if "world_size" in m else None for m in metrics.values()]
    runtime = {key: flat.get(f"runtime.{key}") for key in RUNTIME}
    known = all(value is not None for value in runtime.values())
    own = tags if not prefix else {}
    return Outcome(
        row=row,
        trials=(_trial(parent, runs[seeds[0]]),),
        source=uri,
        candidate=candidate,
        settings=settings_of(flat),
        seeds=seeds,
        accuracy=accuracy,
        names={a: tags[seeds[0]].get(f"attack.{a}", _attack_name(a, flat)) for a in accuracy},
        seconds=seconds,
        labelled=_count(first.get("images.labelled")),
        pool=_count(first.get("images.pool")),
        peak_memory=max(peaks, default=None),
        gpu_seconds=gpu_seconds(seconds, runtime, sizes) if known else None,
        machines=tuple(dict.fromkeys(t["machine"] for t in tags.values() if "machine" in t)),
        digests={seed: t["digest.train"] for seed, t in own.items() if "digest.train" in t},
        test_set=tags[seeds[0]].get("digest.labelled"),
        lower_bounds=tuple(seed for seed, m in metrics.items() if m.get("hit_max_steps")),
        world_sizes=tuple(sorted({size for size in sizes if size is not None})),
    )


def _attack_name(attack: str, flat: dict[str, Any]) -> str:
    """What an attack may be called where the run does not say; never AutoAttack on a guess."""
    if attack == "pgd" and "evaluate.pgd_steps" in flat:
        restarts = flat.get("evaluate.pgd_restarts", 1)
        more = f" ({restarts} restarts)" if restarts > 1 else ""
        return f"PGD-{flat['evaluate.pgd_steps']}{more}"
    return {"autoattack": "strongest ensemble", VALIDATION: "validation PGD"}.get(attack, attack)


def value_of(text: str) -> Any:
    """The value of a parameter, which MLflow keeps as Python's text of it."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _count(value: float | None) -> int | None:
    return None if value is None else int(value)


def _trial(parent: str, run: Any) -> str:
    """`<parent>/<trial>` of a sweep's nested run, otherwise `<parent>`."""
    trial = run.data.tags.get("trial")
    return f"{parent}/{trial}" if trial else parent
