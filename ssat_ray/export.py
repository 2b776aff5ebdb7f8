"""`ssat export`: one classifier of a finished comparison as a folder that others can load and read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

from ssat_ray.adversarial.intervals import bootstrap_interval
from ssat_ray.errors import UserError
from ssat_ray.mistakes import nearest
from ssat_ray.models.files import DESCRIPTION, WEIGHTS
from ssat_ray.models.public import public_file
from ssat_ray.places import Place, local_copy, write_atomic
from ssat_ray.report.card import model_card
from ssat_ray.report.words import ATTACKS
from ssat_ray.stages.evaluate import read_flags
from ssat_ray.stages.report import read_results
from ssat_ray.store import Store

CARD = "README.md"
PATHS = (
    ("data", "path"),
    ("pool", "path"),
    ("intermediate", "checkpoint"),
    ("pretrain", "checkpoint"),
)
"""Settings that name places of this machine or network; only their last part is told."""
Chosen = tuple[str, int]
"""Row and seed."""


@dataclass(frozen=True)
class FinishedRun:
    """A comparison whose report is published.

    Args:
        folder: `runs/<name>`.
        report: digest of its report.
        config: the configuration, as `run.json` has it.
        places: (row, seed, stage) -> `<stage>/<digest>` in the store.
        results: content of `results.json`.
    """

    folder: Place
    store: Store
    report: str
    config: dict[str, Any]
    places: dict[tuple[str, int, str], str]
    results: dict[str, Any]

    @classmethod
    def open(cls, name: str, runs: Place, store: Place | None = None) -> FinishedRun:
        """The run of this name; its store is the one it was run with, unless another is given.

        Raises:
            UserError: there is no such run, it is unfinished, or it trained no classifier.
        """
        folder = runs / name
        if not (folder / "run.json").is_file():
            known = sorted(path.parent.name for path in runs.glob("*/run.json"))
            raise UserError(
                f"{folder} is no run{nearest(name, known)}; "
                + (
                    f"the runs are {', '.join(known)}."
                    if known
                    else "there are no runs there (--runs)."
                )
            )
        found = json.loads((folder / "run.json").read_text())
        if found["report"] is None:
            raise UserError(
                f"the run {name} ends with a selection and trained no classifier, so there is none to export."
            )
        opened = Store(store or found["config"]["runtime"]["store"])
        if not opened.root.is_dir():
            raise UserError(
                f"the store {opened.root} does not exist; give its folder with --store."
            )
        places = {(j["row"], j["seed"], j["stage"]): j["folder"] for j in found["jobs"]}
        report = opened.root / "report" / found["report"]
        unfinished = [
            f"{stage} of {row} seed {seed}"
            for (row, seed, stage), place in places.items()
            if Store.read_record(opened.root / place) is None
        ]
        if unfinished or Store.read_record(report) is None:
            what = (
                f"{len(unfinished)} artefacts ({unfinished[0]} …)" if unfinished else "its report"
            )
            raise UserError(
                f"the run {name} is unfinished: {opened.root} lacks {what}. Run its command again, then export."
            )
        results = read_results(report)
        return cls(folder, opened, found["report"], found["config"], places, results)

    def folder_of(self, chosen: Chosen, stage: str) -> Place:
        return self.store.root / self.places[(*chosen, stage)]

    def record(self, chosen: Chosen, stage: str) -> dict[str, Any]:
        record = Store.read_record(self.folder_of(chosen, stage))
        assert record is not None, "every artefact of a finished run is published"
        return record

    def row(self, name: str) -> dict[str, Any]:
        return next(row for row in self.results["rows"] if row["row"] == name)


def choose(run: FinishedRun, row: str | None = None, seed: int | None = None) -> tuple[Chosen, str]:
    """The row and seed to export, and a sentence on why: the best by validation PGD accuracy.

    The test images take no part in the choice. Of equal ones the first in the run's order is taken.

    Raises:
        UserError: the run has no such row or seed.
    """
    validation = {
        (one["row"], s): value
        for one in run.results["rows"]
        for s, value in zip(one["seeds"], one["validation"], strict=True)
    }
    rows, seeds = (list(dict.fromkeys(pair[i] for pair in validation)) for i in (0, 1))
    if row is not None and row not in rows:
        raise UserError(
            f"--row {row}: the run {run.folder.name} has no such row{nearest(row, rows)}; "
            f"its rows are {', '.join(rows)}."
        )
    if seed is not None and seed not in seeds:
        raise UserError(
            f"--seed {seed}: the run {run.folder.name} has no such seed; its seeds are "
            f"{', '.join(map(str, seeds))}."
        )
    asked = [(r, s) for r, s in validation if row in (None, r) and seed in (None, s)]
    best = max(asked, key=lambda pair: validation[pair])
    if len(asked) == 1:
        return best, "Row and seed were given, not chosen by a result."
    return best, (
        f"It is the best of {len(asked)} classifiers by PGD accuracy on the validation images "
        f"({validation[best]:.2f} %); the test images took no part in the choice."
    )


def describe(run: FinishedRun, chosen: Chosen, why: str, name: str) -> dict[str, Any]:
    """The content of an exported `model.json`: what loading needs, and what the model card says."""
    row, seed = chosen
    trained, entry = run.record(chosen, "train"), run.row(row)
    index, data = entry["seeds"].index(seed), run.results["data"]
    recipe = entry["recipe"][index]
    return {
        **json.loads((run.folder_of(chosen, "train") / DESCRIPTION).read_text()),
        "name": name,
        "row": row,
        "seed": seed,
        "recipe": recipe,
        "chosen": why,
        "run": run.folder.name,
        "created": run.results["created"],
        "config": _config(run, recipe),
        "digests": {
            stage: place for (r, s, stage), place in run.places.items() if (r, s) == chosen
        },
        "images": {
            **trained["images"],
            "validation": data["num_validation"],
            "test": data["num_test"],
        },
        "training": {
            key: trained[key]
            for key in ("steps", "kept_step", "plateau_step", "hit_max_steps", "seconds")
        },
        "validation": {"clean": trained["val_clean"], "pgd": trained["val_pgd"]},
        "metrics": _metrics(run, chosen),
        "seeds": entry["seeds"],
        "over_seeds": _over_seeds(entry),
        "against_random": entry["differences"].get("random"),
        "warnings": _warnings(run, chosen),
        "made_by": trained["made_by"],
    }


def _config(run: FinishedRun, recipe: str) -> dict[str, Any]:
    """The configuration of this one training: without places, and with the recipe's settings."""
    tree: dict[str, Any] = json.loads(json.dumps(run.config))
    del tree["runtime"]
    for section, key in PATHS:
        if tree[section][key]:
            tree[section][key] = _without_place(tree[section][key])
    tree["train"] |= tree["train"].pop("none_recipes").get(recipe, {})
    return tree


def _without_place(location: str) -> str:
    """The last part of a path, or of a URI's path in its bucket."""
    if "://" not in location:
        return Path(location).name
    _, *below = location.partition("://")[2].partition("?")[0].strip("/").split("/")
    return below[-1] if below else ""


def _metrics(run: FinishedRun, chosen: Chosen) -> dict[str, dict[str, Any]]:
    """attack -> name, accuracy and 95 % interval (%) of this one classifier, and number of images."""
    attacks = [s.partition(":")[2] for *pair, s in run.places if tuple(pair) == chosen and ":" in s]
    found = {}
    for attack in sorted(attacks, key=lambda a: ATTACKS.index(a) if a in ATTACKS else len(ATTACKS)):
        stage = f"evaluate:{attack}"
        flags = read_flags(run.folder_of(chosen, stage))
        values = (100 * value for value in bootstrap_interval(flags[np.newaxis]))
        found[attack] = {
            "name": run.record(chosen, stage)["name"],
            **dict(zip(("accuracy", "low", "high"), values, strict=True)),
            "images": len(flags),
        }
    return found


def _over_seeds(entry: dict[str, Any]) -> dict[str, Any]:
    """What the row reached over its seeds; empty where there is one."""
    if len(entry["seeds"]) == 1:
        return {}
    kept = ("name", "mean", "low", "high", "seeds")
    return {attack: {k: found[k] for k in kept} for attack, found in entry["accuracy"].items()}


def _warnings(run: FinishedRun, chosen: Chosen) -> list[str]:
    """Those of the run but what is said of other classifiers."""
    about = {(row, seed): f"{row}, seed {seed}: " for row, seed, _ in run.places}
    others = tuple(text for pair, text in about.items() if pair != chosen)
    return [
        warning.removeprefix(about[chosen])
        for warning in run.results["warnings"]
        if not warning.startswith(others)
    ]


def check_target(out: Path, force: bool) -> None:
    """UserError unless `out` is a new or an empty folder, or may be written over."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is no folder.")
    if out.is_dir() and any(out.iterdir()) and not force:
        raise UserError(
            f"--out {out} is not empty; give another folder, or --force to replace files of the same names."
        )


def write_export(run: FinishedRun, chosen: Chosen, about: dict[str, Any], out: Path) -> list[Path]:
    """Write the exported files into a folder; returns their paths.

    Args:
        about: from `describe`.

    Raises:
        UserError: the folder cannot be written.
    """
    checkpoint = run.folder_of(chosen, "train") / WEIGHTS
    files: dict[str, bytes | str] = {
        WEIGHTS: checkpoint.read_bytes(),
        DESCRIPTION: json.dumps(about, indent=1),
        f"{about['name']}.pt": public_file(load_file(local_copy(checkpoint))),
        CARD: model_card(about),
    }
    try:
        for name, data in files.items():
            write_atomic(out / name, data)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror}).") from error
    return [out / name for name in files]
