"""results.json and report.html of a real run, and the masking check."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssat_ray.loading import load_config
from ssat_ray.plan import build_plan
from ssat_ray.stages.base import Task
from ssat_ray.stages.evaluate import FLAGS, read_flags
from ssat_ray.stages.results import (
    Artefacts,
    _made_by,
    _mixture,
    _world_sizes,
    build_results,
)
from ssat_ray.store import Store


@pytest.mark.ray
def test_rows_and_attacks_on_all_test_images(tiny_run: Any) -> None:
    results = tiny_run.results
    assert [r["row"] for r in results["rows"]] == list(tiny_run.config.rows)
    for row in results["rows"]:
        for attack in ("clean", "pgd", "apgd-ce"):
            flags = read_flags(
                tiny_run.store.folder(tiny_run.plan.jobs[row["row"], 0, f"evaluate:{attack}"])
            )
            entry = row["accuracy"][attack]
            assert len(flags) == 797
            assert entry["by_seed"] == [pytest.approx(100 * flags.mean())]
            assert entry["low"] <= entry["mean"] <= entry["high"]
            assert entry["low"] < entry["high"]
    assert results["rows"][0]["accuracy"]["pgd"]["name"] == "PGD-3"


@pytest.mark.ray
def test_differences_are_paired_means(tiny_run: Any) -> None:
    flags = {
        name: read_flags(tiny_run.store.folder(tiny_run.plan.jobs[name, 0, "evaluate:pgd"])).astype(
            float
        )
        for name in ("lcs-km", "random", "full")
    }
    row = tiny_run.row("lcs-km")
    for baseline in ("random", "full"):
        expected = 100 * np.mean(flags["lcs-km"] - flags[baseline])
        assert row["differences"][baseline]["mean"] == pytest.approx(expected)
    assert "random" not in tiny_run.row("random")["differences"]


@pytest.mark.ray
def test_each_row_is_charged_for_what_it_needs(tiny_run: Any) -> None:
    charged = {r["row"]: set(r["seconds"]) - {"total"} for r in tiny_run.results["rows"]}
    pool = {"pretrain", "generate", "train"}
    assert charged["none"] == {"train"}
    assert charged["full"] == pool
    assert charged["random"] == pool | {"select"}
    assert charged["pcs"] == pool | {"intermediate", "score", "select"}
    assert charged["lcs-km"] == charged["easy"] == charged["pcs"] | {"cluster"}
    for row in tiny_run.results["rows"]:
        assert row["seconds"]["total"] == pytest.approx(
            sum(v for k, v in row["seconds"].items() if k != "total")
        )
    own = ("none", "lcg-km")  # no pool, and a smaller one
    others = [row for row in tiny_run.results["rows"] if row["row"] not in own]
    assert len({row["seconds"]["generate"] for row in others}) == 1


@pytest.mark.ray
def test_reach_full_minus_half_is_read_from_the_history(tiny_run: Any) -> None:
    goal = tiny_run.store.record(tiny_run.plan.jobs["full", 0, "train"])["val_pgd"] - 0.5
    for row in tiny_run.results["rows"]:
        reached = [h for h in row["history"][0] if h[2] >= goal]
        expected = reached[0][0] if reached else None
        assert row["reach_full_minus_half"]["steps"] == [expected]


@pytest.mark.ray
def test_stage_records_name_workers_and_actors(tiny_run: Any) -> None:
    for stage in tiny_run.results["stages"]:
        if stage["stage"] in ("intermediate", "pretrain", "train"):
            assert stage["world_size"] >= 2
            assert stage["backend"] == "gloo"
            assert len(stage["worker_pids"]) == stage["world_size"]
        if stage["stage"] in ("generate", "cluster", "score", "evaluate"):
            assert stage["actor_pids"]
            assert stage["blocks"] > 0


@pytest.mark.ray
def test_report_is_self_contained_and_names_every_row(tiny_run: Any) -> None:
    html = (tiny_run.folder / "report.html").read_text()
    assert html.lstrip().lower().startswith("<!doctype html")
    for row in tiny_run.config.rows:
        assert row in html
    assert "<link" not in html
    assert 'src="http' not in html


TRAINED = {
    "seconds": 40.0,
    "steps": 1000,
    "plateau_step": 800,
    "hit_max_steps": True,
    "flops": 1e12,
    "val_pgd": 80.0,
    "history": [{"step": 1000, "seconds": 40.0, "val_pgd": 80.0}],
    "images": {"labelled": 300, "pool": 0},
    "world_size": 2,
    "peak_pss_bytes": 900,
    "baseline_pss_bytes": 700,
}


def published(
    tmp_path: Path,
    autoattack_seeds: tuple[int, ...] = (),
    left: dict[str, int] | None = None,
    signs: list[str] | None = None,
    **changed: Any,
) -> Artefacts:
    """Artefacts of `none` and `full` for two seeds, without computing any.

    `left`: of 20 images those that stay correct, by attack. `signs`: those of AutoAttack.
    `changed`: what the record of `train full seed 1` holds instead; None: not at all.
    """
    left, signs = left or {}, signs or []
    overrides = ["rows=[none,full]", "seeds=[0,1]"]
    overrides.append(f"evaluate.autoattack_seeds={list(autoattack_seeds)}")
    plan, store = build_plan(load_config("digits", overrides)), Store(tmp_path)
    odd = plan.jobs["full", 1, "train"].digest
    for job in plan.unique:
        record: dict[str, Any] = {"seconds": 5.0, "peak_pss_bytes": 500}
        if job.stage == "labelled":
            rows = {"labelled": 300, "validation": 700, "test": 20}
            record |= {"rows": rows, "num_classes": 10, "image_shape": [1, 8, 8]}
        elif job.stage == "generate":
            record |= {"rows": 10_000}
        elif job.stage == "train":
            record = {**TRAINED, **(changed if job.digest == odd else {})}
            if job.inputs.keys() & {"default"}:
                record |= {"recipe": "default", "seconds_all_recipes": 130.0}
        elif job.stage == "evaluate":
            attack, seed = job.params["attack"], job.inputs["classifier"].params["seed"]
            by_class = [0.9 - 0.1 * seed, None, 0.7 + 0.2 * seed]
            record |= {"name": attack, "accuracy_by_class": by_class, "worst_class": 2}
            record["signs"] = signs if attack == "autoattack" else []
            store.folder(job).mkdir(parents=True)
            np.save(store.folder(job) / FLAGS, np.arange(20) < left.get(attack, 15))
        store.publish(job, {k: v for k, v in record.items() if v is not None})
    return Artefacts(Task.of(plan.report, store))


def test_trainings_that_ended_at_the_limit_are_counted(tmp_path: Path) -> None:
    results = build_results(published(tmp_path, hit_max_steps=False))
    assert results["warnings"] == [
        "3 of 4 trainings ended at train.max_steps=800 before a plateau, "
        "so steps to convergence are lower bounds"
    ]
    assert [row["steps"]["hit_max_steps"] for row in results["rows"]] == [
        [True, True],
        [True, False],
    ]
    assert results["rows"][0]["seconds_all_recipes"] == 130.0
    assert results["data"]["pool_images"] == 10_000
    assert results["made_by"]["commits"] == [results["git_commit"] or "unknown"]
    assert len(results["made_by"]["machines"]) == 1


def test_accuracy_by_class_is_the_mean_over_seeds(tmp_path: Path) -> None:
    entry = build_results(published(tmp_path))["rows"][0]["accuracy"]["pgd"]
    assert entry["by_class"] == [pytest.approx(85.0), None, pytest.approx(80.0)]
    assert entry["worst_class"] == 2
    assert entry["signs"] == [[], []]


def test_signs_of_masking_are_warnings_by_row_and_seed(tmp_path: Path) -> None:
    """PGD leaves more than 10 points more than AutoAttack, whose own checks complain too."""
    artefacts = published(tmp_path, (1,), {"autoattack": 12}, ["AutoAttack: no gradient"])
    found = [w for w in build_results(artefacts)["warnings"] if "limit" not in w]
    expected = ["pgd accuracy 0.7500 exceeds autoattack", "AutoAttack: no gradient"]
    assert len([w for w in found if "seed 1: " in w]) == 4
    for row in ("none", "full"):
        for text in expected:
            assert any(w.startswith(f"{row}, seed 1: {text}") for w in found)
    assert not any("seed 0" in w for w in found)


def test_memory_that_training_added_is_known_only_with_a_baseline(tmp_path: Path) -> None:
    results = build_results(published(tmp_path, baseline_pss_bytes=None))
    assert [row["train_rise_bytes"] for row in results["rows"]] == [[200, 200], [200, None]]
    bases = [s.get("baseline_pss_bytes") for s in results["stages"] if s["stage"] == "train"]
    assert bases.count(700) == len(bases) - 1


def test_a_training_of_another_world_size_is_named(tmp_path: Path) -> None:
    results = build_results(published(tmp_path, world_size=4))
    assert [row["world_size"] for row in results["rows"]] == [[2, 2], [2, 4]]
    found = [w for w in results["warnings"] if "world_size" in w]
    assert len(found) == 1
    assert "4 for full (seed 1); 2 for the rest" in found[0]
    assert _world_sizes([{"row": "none", "seeds": [0, 1], "world_size": [2, None]}]) == []


def test_more_than_one_commit_or_machine_is_told() -> None:
    machine = {"cpu": "EPYC", "cores": 2, "memory_gib": 23.5}
    first = {"commit": "b" * 40, "machine": machine}
    records = [
        {"stage": "train", "made_by": first},
        {"stage": "evaluate", "made_by": {**first, "commit": "a" * 40}},
        {"stage": "train", "made_by": {**first, "machine": {**machine, "cores": 16}}},
        {"stage": "generate", "made_by": {"commit": "c" * 40, "machine": machine}},
        {"stage": "train"},
    ]
    made_by = _made_by(records)
    assert made_by == {
        "commits": ["a" * 40, "b" * 40],
        "machines": ["EPYC, 16 cores, 23.5 GiB", "EPYC, 2 cores, 23.5 GiB"],
    }
    commits, machines = _mixture(made_by)
    assert "aaaaaaaaaa, bbbbbbbbbb" in commits
    assert "seconds are not comparable across machines" in machines
    assert _mixture(_made_by(records[:1])) == []
    assert _made_by(records[-1:]) == {"commits": [], "machines": []}
