"""RobustBench's JSON: its fields and forms, and what is called AutoAttack."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ssat_ray.stages.robustbench import architecture, model_info, radius, write_model_info

FIELDS = {
    "link": str,
    "name": str,
    "authors": str,
    "additional_data": bool,
    "number_forward_passes": int,
    "dataset": str,
    "venue": str,
    "architecture": str,
    "eps": str,
    "clean_acc": str,
    "reported": str,
    "autoattack_acc": str,
    "footnote": str,
    "unreliable": bool,
}
"""Of the entries in RobustBench's model_info/cifar10/Linf since 2023, in their order."""


def entry(name: str, by_seed: dict[int, float]) -> dict[str, Any]:
    seeds = list(by_seed)
    return {"name": name, "seeds": seeds, "by_seed": list(by_seed.values()), "signs": [[]] * 2}


def make_results(full: str = "AutoAttack", source: str = "generate") -> dict[str, Any]:
    def row(name: str, pool: int) -> dict[str, Any]:
        return {
            "row": name,
            "seeds": [0, 1],
            "images": {"labelled": 50_000, "pool": pool},
            "accuracy": {
                "clean": entry("clean", {0: 92.436, 1: 91.0}),
                "pgd": entry("PGD-40", {0: 70.2, 1: 70.0}),
                "autoattack": entry(full, {1: 67.3}),
            },
        }

    return {
        "name": "mine",
        "norm": "linf",
        "eps": 8 / 255,
        "data": {"dataset": "cifar10", "num_test": 10_000},
        "config": {
            "model": {"name": "wrn-28-10-silu"},
            "pool": {"source": source},
            "data": {"num_test": None},
        },
        "rows": [row("none", 0), row("full", 1_000_000)],
    }


def test_an_entry_has_the_fields_and_forms_of_robustbench() -> None:
    results = make_results()
    found = model_info("try2", results, results["rows"][1], 1)
    other = found.pop("other_acc")
    assert {key: type(value) for key, value in found.items()} == FIELDS
    assert list(found) == list(FIELDS)
    assert found["name"] == "try2: full, seed 1" and found["clean_acc"] == "91.00"
    assert found["autoattack_acc"] == found["reported"] == "67.30"
    assert (found["dataset"], found["eps"]) == ("cifar10", "8/255")
    assert found["architecture"] == "WideResNet-28-10"
    assert found["footnote"] == "It uses additional 1,000,000 synthetic images in training."
    assert not found["additional_data"] and not found["unreliable"]
    assert other == {"PGD-40": "70.00"}


def test_an_ensemble_is_not_called_autoattack() -> None:
    name = "ensemble (not standard AutoAttack)"
    results = make_results(name)
    found = model_info("try2", results, results["rows"][1], 1)
    assert "autoattack_acc" not in found and "reported" not in found
    assert found["other_acc"] == {"PGD-40": "70.00", name: "67.30"}


def test_extra_data_a_test_set_of_ones_own_and_doubts_are_said() -> None:
    results = make_results(source="external")
    results["config"]["data"]["num_test"] = 500
    results["data"]["num_test"] = 500
    results["rows"][1]["accuracy"]["autoattack"]["signs"] = [["AutoAttack: no gradient"]]
    none, full = (model_info("try2", results, row, 1) for row in results["rows"])
    assert not none["additional_data"] and full["additional_data"]
    assert none["footnote"] == "Evaluated on 500 held-out images."
    assert full["footnote"].startswith("It uses additional 1,000,000 images of a given pool")
    assert (none["unreliable"], full["unreliable"]) == (False, True)


def test_one_file_a_row_and_seed_that_met_autoattack(tmp_path: Path) -> None:
    results, folder = make_results(), tmp_path / "try2"
    stale = folder / "robustbench" / "cifar10" / "Linf" / "pcs-seed-3.json"
    stale.parent.mkdir(parents=True)
    stale.write_text("{}")
    write_model_info(results, folder)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*.json"))
    below = Path("robustbench", "cifar10", "Linf")
    assert files == [below / "full-seed-1.json", below / "none-seed-1.json"]
    found = json.loads((folder / files[0]).read_text())
    assert found == model_info("try2", results, results["rows"][1], 1)
    for row in results["rows"]:
        del row["accuracy"]["autoattack"]
    write_model_info(results, folder)
    assert not (folder / "robustbench").exists()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("wrn-70-16-relu", "WideResNet-70-16"),
        ("wrn-28-10", "WideResNet-28-10"),
        ("preact-resnet-18-silu", "PreActResNet-18"),
        ("resnet50", "ResNet-50"),
        ("preact-small", "preact-small"),
        ("mine.nets:resnet18", "mine.nets:resnet18"),
    ],
)
def test_architectures(name: str, expected: str) -> None:
    assert architecture(name) == expected


@pytest.mark.parametrize(
    ("eps", "norm", "expected"),
    [
        (8 / 255, "linf", "8/255"),
        (0.031, "linf", "0.031"),
        (0.15, "linf", "0.15"),
        (0.5, "l2", "0.5"),
    ],
)
def test_radii(eps: float, norm: str, expected: str) -> None:
    assert radius(eps, norm) == expected
