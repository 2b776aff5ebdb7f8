"""RobustBench's JSON about a model, one file for each row and seed that met AutoAttack (docs/evaluation.md)."""

from __future__ import annotations

import json
import re
from typing import Any

from ssat_ray.adversarial.autoattack import AUTOATTACK
from ssat_ray.places import Place, remove_tree, write_atomic
from ssat_ray.stages.soundness import signs_of

Record = dict[str, Any]
FOLDER = "robustbench"
THREATS = {"linf": "Linf", "l2": "L2"}
"""Folders of RobustBench's `model_info/<dataset>/`."""
_FAMILIES = (
    (r"wrn-(\d+-\d+).*", r"WideResNet-\1"),
    (r"preact-resnet-(\d+).*", r"PreActResNet-\1"),
    (r"resnet(\d+)", r"ResNet-\1"),
)


def write_model_info(results: Record, folder: Place) -> None:
    """Write `<folder>/robustbench/<dataset>/<Linf|L2>/<row>-seed-<seed>.json`, and remove what an older run left."""
    remove_tree(folder / FOLDER)
    for row in results["rows"]:
        for seed in row["accuracy"].get("autoattack", {"seeds": []})["seeds"]:
            info = model_info(folder.name, results, row, seed)
            place = folder / FOLDER / info["dataset"] / THREATS[results["norm"]]
            write_atomic(place / f"{row['row']}-seed-{seed}.json", json.dumps(info, indent=2))


def model_info(run: str, results: Record, row: Record, seed: int) -> Record:
    """The entry of one classifier of a run of this name; accuracies are strings in percent with two decimals.

    Only the standard AutoAttack makes `autoattack_acc` and `reported`. All other attacks stand in
    `other_acc` under their own names, which RobustBench does not read.

    Source: RobustBench (Croce et al. 2021), `model_info/` and `robustbench.utils.ModelInfo`.
    """
    found = {
        entry["name"]: f"{entry['by_seed'][entry['seeds'].index(seed)]:.2f}"
        for entry in row["accuracy"].values()
        if seed in entry["seeds"]
    }
    clean, full = found.pop("clean"), found.pop(AUTOATTACK, None)
    source = results["config"]["pool"]["source"]
    info: Record = {
        "link": "",
        "name": f"{run}: {row['row']}, seed {seed}",
        "authors": "",
        "additional_data": source == "external" and row["images"]["pool"] > 0,
        "number_forward_passes": 1,
        "dataset": results["data"]["dataset"],
        "venue": "",
        "architecture": architecture(results["config"]["model"]["name"]),
        "eps": radius(results["eps"], results["norm"]),
        "clean_acc": clean,
    }
    if full is not None:
        info |= {"reported": full, "autoattack_acc": full}
    info["footnote"] = " ".join(_remarks(results, row))
    info["unreliable"] = bool(signs_of(row, seed))
    return info | {"other_acc": found}


def architecture(name: str) -> str:
    """RobustBench's name of an architecture where it has one: `wrn-28-10-silu` is WideResNet-28-10."""
    for pattern, family in _FAMILIES:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, family, name)
    return name


def radius(eps: float, norm: str) -> str:
    """`8/255` where an L-infinity radius is a whole number of 255ths, otherwise a decimal number."""
    levels = eps * 255
    if norm == "linf" and abs(levels - round(levels)) < 1e-6:
        return f"{round(levels)}/255"
    return f"{eps:g}"


def _remarks(results: Record, row: Record) -> list[str]:
    """Sentences of the footnote: what the training used beside the data set, and a test set of our own."""
    data, pool = results["data"], row["images"]["pool"]
    found = []
    if pool:
        external = results["config"]["pool"]["source"] == "external"
        kind = "images of a given pool" if external else "synthetic images"
        found.append(f"It uses additional {pool:,} {kind} in training.")
    if results["config"]["data"]["num_test"] is not None:
        found.append(f"Evaluated on {data['num_test']:,} held-out images.")
    return found
