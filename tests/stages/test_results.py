"""results.json and report.html of a real run, and the masking check."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from ssat_ray.stages.evaluate import read_flags
from ssat_ray.stages.results import masked_rows

pytestmark = pytest.mark.ray


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
    shared = {row["row"]: row["seconds"]["generate"] for row in tiny_run.results["rows"][1:]}
    assert len(set(shared.values())) == 1


def test_reach_full_minus_half_is_read_from_the_history(tiny_run: Any) -> None:
    goal = tiny_run.store.record(tiny_run.plan.jobs["full", 0, "train"])["val_pgd"] - 0.5
    for row in tiny_run.results["rows"]:
        reached = [h for h in row["history"][0] if h[2] >= goal]
        expected = reached[0][0] if reached else None
        assert row["reach_full_minus_half"]["steps"] == [expected]


def test_stage_records_name_workers_and_actors(tiny_run: Any) -> None:
    for stage in tiny_run.results["stages"]:
        if stage["stage"] in ("intermediate", "pretrain", "train"):
            assert stage["world_size"] >= 2
            assert stage["backend"] == "gloo"
            assert len(stage["worker_pids"]) == stage["world_size"]
        if stage["stage"] in ("generate", "cluster", "score", "evaluate"):
            assert stage["actor_pids"]
            assert stage["blocks"] > 0


def test_report_is_self_contained_and_names_every_row(tiny_run: Any) -> None:
    html = (tiny_run.folder / "report.html").read_text()
    assert html.lstrip().lower().startswith("<!doctype html")
    for row in tiny_run.config.rows:
        assert row in html
    assert "<link" not in html
    assert 'src="http' not in html


def test_autoattack_above_pgd_is_named(tiny_run: Any) -> None:
    results = copy.deepcopy(tiny_run.results)
    assert masked_rows(results) == []
    row = results["rows"][1]
    pgd = row["accuracy"]["pgd"]["by_seed"][0]
    entry = {
        "mean": pgd,
        "low": pgd,
        "high": pgd,
        "by_seed": [pgd],
        "seeds": [0],
        "name": "AutoAttack",
    }
    row["accuracy"]["autoattack"] = entry
    assert masked_rows(results) == []
    entry["by_seed"] = [pgd + 0.01]
    assert masked_rows(results) == ["random (seed 0)"]
