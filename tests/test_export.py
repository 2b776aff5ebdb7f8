"""`ssat export`: what the files hold, which classifier is taken, what is refused."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from torch import nn

from ssat_ray import cli, pipeline
from ssat_ray.adversarial.intervals import bootstrap_interval
from ssat_ray.config import Config
from ssat_ray.errors import UserError
from ssat_ray.export import FinishedRun, check_target, choose, describe, write_export
from ssat_ray.loading import load_config
from ssat_ray.models.files import classifier_files, load_classifier
from ssat_ray.models.registry import build_classifier
from ssat_ray.places import write_atomic
from ssat_ray.plan import Plan, build_plan
from ssat_ray.store import Store

SHAPE, CLASSES, IMAGES = (3, 32, 32), 10, 200
VALIDATION = {("none", 0): 60.0, ("none", 1): 61.0, ("lcs-km", 0): 63.0, ("lcs-km", 1): 62.5}
TEST = {pair: 0.9 - value / 100 for pair, value in VALIDATION.items()}
"""Test accuracy falls as validation accuracy rises: a choice by the test set would show."""


@dataclass
class Invented:
    """A finished comparison of invented numbers: everything is published, nothing was computed."""

    root: Path
    config: Config
    plan: Plan
    store: Store
    models: dict[tuple[str, int], nn.Module]

    def open(self) -> FinishedRun:
        return FinishedRun.open("mine", self.root / "runs")

    def export(self, out: Path, row: str | None = None, seed: int | None = None) -> Path:
        run = self.open()
        chosen, why = choose(run, row, seed)
        write_export(run, chosen, describe(run, chosen, why, "robust"), out)
        return out

    def flags(self, row: str, seed: int, attack: str) -> np.ndarray:
        rng = np.random.default_rng([seed, len(row), len(attack)])
        drop = {"clean": -0.3, "pgd": 0.0, "apgd-ce": 0.02, "autoattack": 0.04}[attack]
        return rng.random(IMAGES) < TEST[row, seed] - drop

    def row(self, name: str) -> dict[str, Any]:
        accuracy = {}
        for attack in ("clean", "pgd", "apgd-ce"):
            flags = np.array([self.flags(name, seed, attack) for seed in (0, 1)])
            mean, low, high = (100 * value for value in bootstrap_interval(flags))
            accuracy[attack] = {
                "name": attack,
                "mean": mean,
                "low": low,
                "high": high,
                "seeds": [0, 1],
            }
        return {
            "row": name,
            "seeds": [0, 1],
            "recipe": ["slow", "default"] if name == "none" else ["default", "default"],
            "validation": [VALIDATION[name, seed] for seed in (0, 1)],
            "accuracy": accuracy,
            "differences": {},
        }


SETTINGS = (
    "seeds=[0,1]",
    "rows=[none,lcs-km]",
    "model={name: wrn-10-1-silu, std: [0.25]}",
    "pool={source: synth}",
    "train.none_recipes={slow: {lr: 0.01}}",
    "evaluate.autoattack_seeds=[0]",
)


@pytest.fixture(scope="module")
def invented(tmp_path_factory: pytest.TempPathFactory) -> Invented:
    tmp_path = tmp_path_factory.mktemp("invented")
    inter = tmp_path / "secret" / "inter.pt"
    write_atomic(inter, "")
    places = (f"runtime.store={tmp_path / 'store'}", f"intermediate.checkpoint={inter}")
    config = load_config("digits", [*SETTINGS, *places])
    plan, store = build_plan(config), Store(tmp_path / "store")
    run = Invented(tmp_path, config, plan, store, {})
    for (row, seed, stage), job in plan.jobs.items():
        record: dict[str, Any] = {}
        if stage == "train":
            model = build_classifier(config.model, SHAPE, CLASSES, seed=seed + len(row)).eval()
            run.models[row, seed] = model
            for name, data in classifier_files(model, config.model, SHAPE, CLASSES).items():
                write_atomic(store.folder(job) / name, data)
            record = {"val_clean": 80.0, "val_pgd": VALIDATION[row, seed], "seconds": 9.0}
            record |= {
                "steps": 50,
                "kept_step": 45,
                "plateau_step": 40,
                "hit_max_steps": row == "none",
            }
            record["images"] = {"labelled": 300, "pool": 0 if row == "none" else 2000}
        elif stage.startswith("evaluate"):
            attack = stage.partition(":")[2]
            buffer = io.BytesIO()
            np.save(buffer, run.flags(row, seed, attack))
            write_atomic(store.folder(job) / "flags.npy", buffer.getvalue())
            record = {"name": {"pgd": "PGD-40", "autoattack": "AutoAttack"}.get(attack, attack)}
        store.publish(job, record)
    results = {
        "created": "2026-11-21T10:00:00+00:00",
        "data": {"num_validation": 700, "num_test": IMAGES},
        "warnings": [
            "none, seed 0: pgd accuracy exceeds clean: the attack is broken",
            "lcs-km, seed 0: pgd accuracy exceeds autoattack: masked gradients",
            "2 of 4 trainings ended at train.max_steps",
        ],
        "rows": [run.row("none"), run.row("lcs-km")],
    }
    assert plan.report is not None
    write_atomic(store.folder(plan.report) / "results.json", json.dumps(results))
    store.publish(plan.report, {})
    pipeline.write_run(config, plan, tmp_path / "runs" / "mine")
    return run


def code_of(card: str) -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", card, re.DOTALL))


def ran(folder: Path) -> dict[str, Any]:
    """The names that the card's Python code leaves behind."""
    names: dict[str, Any] = {}
    with contextlib.chdir(folder):
        exec(code_of((folder / "README.md").read_text()), names)
    return names


def test_the_files_are_the_model(invented: Invented, tmp_path: Path) -> None:
    out = invented.export(tmp_path, "lcs-km", 1)
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "model.json",
        "model.safetensors",
        "robust.pt",
    ]
    model = invented.models["lcs-km", 1]
    published = torch.load(out / "robust.pt", weights_only=True)
    assert type(published) is dict and list(published) == list(load_file(out / "model.safetensors"))
    model.load_state_dict(published, strict=True)
    x = torch.rand(2, *SHAPE)
    with torch.no_grad():
        assert (load_classifier(out)(x) - invented.models["lcs-km", 1](x)).abs().max() < 1e-5


def test_the_code_of_the_card_runs(invented: Invented, tmp_path: Path) -> None:
    names = ran(invented.export(tmp_path))
    assert names["logits"].shape == (2, CLASSES)
    expected = invented.models["lcs-km", 0].state_dict()
    assert all(torch.equal(names["model"].state_dict()[key], expected[key]) for key in expected)
    assert set(names["weights"]) == set(expected)


@pytest.mark.ray
def test_the_command_on_a_real_run(
    tiny_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["export", "tiny", "--row", "lcs-km", "--name", "mine", "--out", str(out)]
    with contextlib.chdir(tiny_run.cwd):
        cli.app(arguments, standalone_mode=False)
        with pytest.raises(UserError, match="is not empty"):
            cli.app(arguments, standalone_mode=False)
    assert "row lcs-km seed 0" in capsys.readouterr().out
    about, entry = json.loads((out / "model.json").read_text()), tiny_run.row("lcs-km")
    for attack, found in about["metrics"].items():
        expected = entry["accuracy"][attack]
        assert found["name"] == expected["name"] and found["images"] == 797
        for key, other in (("accuracy", "mean"), ("low", "low"), ("high", "high")):
            assert found[key] == expected[other], "one seed: the interval is the report's"
    assert set(about["metrics"]) == set(entry["accuracy"])
    assert about["against_random"] == entry["differences"]["random"]
    names, x = ran(out), torch.rand(3, 1, 8, 8)
    kept = load_classifier(tiny_run.store.folder(tiny_run.plan.jobs["lcs-km", 0, "train"]))
    assert torch.equal(names["model"](x), kept(x))


def test_the_best_by_validation_is_taken(invented: Invented) -> None:
    run = invented.open()
    assert choose(run)[0] == ("lcs-km", 0)
    assert "best of 4 classifiers" in choose(run)[1] and "63.00 %" in choose(run)[1]
    assert choose(run, row="none")[0] == ("none", 1)
    assert choose(run, seed=1)[0] == ("lcs-km", 1)
    assert choose(run, "none", 0) == (
        ("none", 0),
        "Row and seed were given, not chosen by a result.",
    )


def test_json_has_what_the_artefacts_say(invented: Invented, tmp_path: Path) -> None:
    about = json.loads((invented.export(tmp_path) / "model.json").read_text())
    assert (about["row"], about["seed"], about["run"]) == ("lcs-km", 0, "mine")
    train = invented.plan.jobs["lcs-km", 0, "train"]
    assert about["digests"]["train"] == f"train/{train.digest}"
    assert about["digests"]["pool"].startswith("synth/")
    assert {"labelled", "intermediate", "cluster", "score", "select"} < set(about["digests"])
    assert about["made_by"]["versions"]["torch"]
    assert list(about["metrics"]) == ["clean", "pgd", "apgd-ce", "autoattack"]
    for attack, entry in about["metrics"].items():
        flags = invented.flags("lcs-km", 0, attack)
        assert entry["accuracy"] == pytest.approx(100 * flags.mean())
        spread = 100 * 1.96 * np.sqrt(flags.mean() * (1 - flags.mean()) / IMAGES)  # normal
        assert entry["high"] - entry["accuracy"] == pytest.approx(spread, rel=0.2)
        assert entry["accuracy"] - entry["low"] == pytest.approx(spread, rel=0.2)
        assert entry["images"] == IMAGES
    assert about["over_seeds"]["pgd"]["mean"] == invented.row("lcs-km")["accuracy"]["pgd"]["mean"]
    assert about["warnings"] == [
        "pgd accuracy exceeds autoattack: masked gradients",
        "2 of 4 trainings ended at train.max_steps",
    ]


def test_settings_are_those_of_this_training_and_tell_no_places(
    invented: Invented, tmp_path: Path
) -> None:
    out = invented.export(tmp_path, "none", 0)
    about = json.loads((out / "model.json").read_text())
    assert about["recipe"] == "slow" and about["config"]["train"]["lr"] == 0.01
    assert "none_recipes" not in about["config"]["train"] and "runtime" not in about["config"]
    assert about["config"]["intermediate"]["checkpoint"] == "inter.pt"
    for name in ("model.json", "README.md"):
        text = (out / name).read_text()
        assert "secret" not in text and str(invented.root) not in text


@pytest.mark.parametrize(("below", "told"), [("/pools/mine", "mine"), ("", "")])
def test_no_bucket_host_or_folder_is_told(invented: Invented, below: str, told: str) -> None:
    run = invented.open()
    run.config["pool"]["path"] = f"s3://secret{below}?endpoint_override=secret-host:9000"
    run.config["pretrain"]["checkpoint"] = "/home/secret/ddpm"
    config = describe(run, *choose(run, "none", 0), "robust")["config"]
    assert (config["pool"]["path"], config["pretrain"]["checkpoint"]) == (told, "ddpm")
    assert "secret" not in json.dumps(config)


def test_the_hub_reads_the_card(invented: Invented, tmp_path: Path) -> None:
    card = ModelCard((invented.export(tmp_path) / "README.md").read_text())
    assert card.data.model_name == "robust" and card.data.license is None
    found = {entry.metric_name: entry.metric_value for entry in card.data.eval_results}
    metrics = json.loads((tmp_path / "model.json").read_text())["metrics"]
    assert found == {
        "clean accuracy": round(metrics["clean"]["accuracy"], 2),
        "PGD-40 accuracy, eps 0.15": round(metrics["pgd"]["accuracy"], 2),
        "apgd-ce accuracy, eps 0.15": round(metrics["apgd-ce"]["accuracy"], 2),
        "AutoAttack accuracy, eps 0.15": round(metrics["autoattack"]["accuracy"], 2),
    }


@pytest.mark.parametrize(
    ("name", "row", "seed", "said"),
    [
        ("mien", None, None, r"no run \(did you mean 'mine'\?\); the runs are mine"),
        ("mine", "lcs-kn", None, r"no such row \(did you mean 'lcs-km'\?\)"),
        ("mine", None, 7, r"--seed 7: .* its seeds are 0, 1"),
    ],
)
def test_unknown_names(
    name: str, row: str | None, seed: int | None, said: str, invented: Invented
) -> None:
    with pytest.raises(UserError, match=said):
        choose(FinishedRun.open(name, invented.root / "runs"), row, seed)


@pytest.mark.parametrize(
    ("row", "stage", "said"),
    [
        (None, None, "lacks its report"),
        ("none", "train", r"lacks 1 artefacts \(train of none seed 0"),
        ("lcs-km", "evaluate:pgd", r"\(evaluate:pgd of lcs-km seed 0"),
    ],
)
def test_an_unfinished_run(
    row: str | None, stage: str | None, said: str, invented: Invented, tmp_path: Path
) -> None:
    """Also: a copy of the store may stand in for the run's own."""
    store = Store(shutil.copytree(invented.store.root, tmp_path / "copy"))
    runs = invented.root / "runs"
    assert choose(FinishedRun.open("mine", runs, store.root))[0] == ("lcs-km", 0)
    job = invented.plan.jobs[row, 0, stage] if row and stage else invented.plan.report
    assert job is not None
    (store.folder(job) / "stage.json").unlink()
    with pytest.raises(UserError, match=said):
        FinishedRun.open("mine", runs, store.root)
    with pytest.raises(UserError, match="does not exist; give its folder with --store"):
        FinishedRun.open("mine", runs, tmp_path / "none")


def test_a_selection_has_no_classifier(tmp_path: Path) -> None:
    config = load_config("scale-100m")
    pipeline.write_run(config, build_plan(config), tmp_path / "big")
    with pytest.raises(UserError, match="trained no classifier"):
        FinishedRun.open("big", tmp_path)


def test_no_runs_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there are no runs there \(--runs\)"):
        FinishedRun.open("digits", tmp_path)


def test_where_to_write(tmp_path: Path) -> None:
    check_target(tmp_path / "new", force=False)
    check_target(tmp_path, force=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is not empty"):
        check_target(tmp_path, force=False)
    check_target(tmp_path, force=True)
    with pytest.raises(UserError, match="is no folder"):
        check_target(tmp_path / "file", force=True)


def test_a_folder_that_cannot_be_written(invented: Invented, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file is in the way")
    with pytest.raises(UserError, match=r"--out .*out cannot be written"):
        invented.export(tmp_path / "out")
