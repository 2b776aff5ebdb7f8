"""Outcomes from folders: a run's `results.json` and `run.json`, a sweep's `sweep.json` and its trials."""

from __future__ import annotations

import json
from dataclasses import replace
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
from ssat_ray.errors import UserError
from ssat_ray.loading import flatten
from ssat_ray.places import Place
from ssat_ray.report import words
from ssat_ray.store import Store

RESULTS, RUN, SWEEP = "results.json", "run.json", "sweep.json"
FINISHED = "finished"


def read_run(folder: Place, name: str, store: Place | None = None) -> Reading:
    """The outcomes of a finished comparison's folder; its baselines are no candidates.

    Args:
        name: of the run, for people.
        store: of its artefacts, where per-image flags are looked for; None: the one it was run with.

    Raises:
        UserError: there are no results, or they are not those of a comparison.
    """
    results = read_json(folder / RESULTS)
    if results.get("kind") == "selection":
        raise UserError(
            f"{folder / RESULTS} is of a run with goal=selection, which trained nothing to compare."
        )
    warnings = [(name, str(line)) for line in results.get("warnings", ())]
    run = read_json(folder / RUN) if (folder / RUN).is_file() else None
    try:
        if run is not None and _without_runtime(run["config"]) != results["config"]:
            run = None
            text = f"{RESULTS} is of another configuration than {RUN}, whose run is unfinished"
            warnings.append((name, f"{text}: artefacts and GPUs are left out"))
        places = {} if run is None else _places(run, store)
        gpus = None if run is None else run["config"]["runtime"]
        outcomes = tuple(
            _outcome(row, results, places, gpus, name, str(folder)) for row in results["rows"]
        )
        spent = _spent(results["stages"])
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(
            f"{folder} is no finished comparison that this version can read: {type(error).__name__} "
            f"{error} in {RESULTS} or {RUN} (docs/results.md). Run its command again."
        ) from error
    made_by = results.get("made_by") or {}
    return Reading(outcomes, (), (), tuple(warnings), spent, tuple(made_by.get("commits", ())))


def read_sweep(folder: Place, name: str, store: Place | None = None) -> Reading:
    """The outcomes of a sweep's finished trials, and which trials have none.

    Candidates are the outcomes of the row that the sweep is about; the rows beside it are baselines.

    Args:
        name: of the sweep, for people; its trials are called `<name>/<trial>`.
        store: as in `read_run`.

    Raises:
        UserError: `sweep.json` lacks what is needed, no trial is finished, or a finished one cannot be read.
    """
    path = folder / SWEEP
    content = read_json(path)
    try:
        trials = [_trial(trial, content["file"].get("row")) for trial in content["trials"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} is no sweep that this version can read: {type(error).__name__} {error}. It takes "
            "file, and for every trial name, settings, status and the row that is swept."
        ) from error
    finished = [trial for trial in trials if trial["status"] == FINISHED]
    if not finished:
        raise UserError(
            f"{path}: none of its {len(trials)} trials is finished, so there is nothing to compare. Run "
            "its command again."
        )
    reading = Reading(
        unfinished=tuple(
            Unfinished(f"{name}/{t['name']}", t["settings"], t["status"], t["cause"])
            for t in trials
            if t["status"] != FINISHED
        ),
        keys=tuple(dict.fromkeys(key for trial in trials for key in trial["settings"])),
    )
    for trial in finished:
        found = read_run(folder / trial["run"], f"{name}/{trial['name']}", store)
        if trial["row"] not in [one.row for one in found.outcomes]:
            raise UserError(
                f"{folder / trial['run']}: its results lack the swept row {trial['row']}."
            )
        own = [replace(one, candidate=one.row == trial["row"]) for one in found.outcomes]
        reading += replace(found, outcomes=tuple(own))
    return reading


def _trial(trial: dict[str, Any], row: str | None) -> dict[str, Any]:
    """What is needed of an entry of `sweep.json`; `row` is swept unless the trial has its own."""
    settings = dict(trial["settings"])
    own = settings.pop("row", None) or trial.get("row") or row
    if own is None:
        raise KeyError("row")
    return {
        "name": str(trial["name"]),
        "run": str(trial.get("run") or trial["name"]),
        "settings": settings,
        "status": str(trial["status"]),
        "cause": str(trial.get("cause") or _stopped(trial)),
        "row": str(own),
    }


def _stopped(trial: dict[str, Any]) -> str:
    """Where early stopping ended it, and with what; empty if it did not."""
    if trial.get("step") is None or not trial.get("reports"):
        return ""
    return stopped_text(int(trial["step"]), float(trial["reports"][-1][1]))


def read_json(path: Place) -> dict[str, Any]:
    """A JSON object; UserError if the file is missing or is none."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: the run is unfinished, or is none.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise UserError(f"{path} is no JSON file ({error}).") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold an object, found {type(content).__name__}.")
    return content


def _without_runtime(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "runtime"}


def _places(run: dict[str, Any], store: Place | None) -> dict[tuple[str, int, str], Place]:
    """(row, seed, stage) -> folder of the artefact."""
    root = Store(store or run["config"]["runtime"]["store"]).root
    return {(j["row"], int(j["seed"]), j["stage"]): root / j["folder"] for j in run["jobs"]}


def _outcome(
    row: dict[str, Any],
    results: dict[str, Any],
    places: dict[tuple[str, int, str], Place],
    runtime: dict[str, Any] | None,
    name: str,
    source: str,
) -> Outcome:
    entries, seeds = row["accuracy"], tuple(int(seed) for seed in row["seeds"])
    accuracy = {
        attack: dict(zip(map(int, entry["seeds"]), map(float, entry["by_seed"]), strict=True))
        for attack, entry in entries.items()
    }
    if set(accuracy["pgd"]) != set(seeds):
        raise KeyError(f"PGD accuracy of row {row['row']} for the seeds {list(seeds)}")
    names = {attack: str(entry["name"]) for attack, entry in entries.items()}
    if row.get("validation"):
        accuracy[VALIDATION] = dict(zip(seeds, map(float, row["validation"]), strict=True))
        names[VALIDATION] = "validation PGD"
    mine = {(seed, stage): path for (r, seed, stage), path in places.items() if r == row["row"]}
    labelled = mine.get((seeds[0], "labelled"))
    flags = {
        (attack, seed): mine[seed, f"evaluate:{attack}"] / "flags.npy"
        for attack, by_seed in accuracy.items()
        for seed in by_seed
        if (seed, f"evaluate:{attack}") in mine
    }
    seconds = {stage: float(value) for stage, value in row["seconds"].items()}
    sizes = row.get("world_size") or ()
    limits = zip(seeds, row["steps"]["hit_max_steps"], strict=True)
    machines = (results.get("made_by") or {}).get("machines") or [
        words.machine_name(results.get("machine"))
    ]
    return Outcome(
        row=row["row"],
        trials=(name,),
        source=source,
        candidate=row["row"] not in BASELINES,
        settings=settings_of(flatten(results["config"])),
        seeds=seeds,
        accuracy=accuracy,
        names=names,
        seconds={"total": seconds["total"], **seconds},
        labelled=int(row["images"]["labelled"]),
        pool=int(row["images"]["pool"]),
        peak_memory=float(row["peak_memory_bytes"]["max"]),
        gpu_seconds=None if runtime is None else gpu_seconds(seconds, runtime, sizes),
        machines=tuple(machines),
        digests={seed: mine[seed, "train"].name for seed in seeds if (seed, "train") in mine},
        test_set=None if labelled is None else labelled.name,
        flags={key: path for key, path in flags.items() if path.is_file()},
        lower_bounds=tuple(seed for seed, hit in limits if hit),
        world_sizes=tuple(sorted({int(size) for size in sizes if size is not None})),
    )


def _spent(stages: list[dict[str, Any]]) -> dict[tuple[str, float], float]:
    """(digest, seconds) -> seconds with start-up; the kept recipe is counted where it was trained."""
    labels = [stage["label"] for stage in stages]
    return {
        (stage["digest"], float(stage["seconds"])): stage["seconds"] + stage["startup_seconds"]
        for stage in stages
        if not any(label.startswith(f"{stage['label']} recipe ") for label in labels)
    }
