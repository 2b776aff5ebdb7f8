"""Outcomes read from the folders of runs and sweeps: every number is that of results.json; what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssat_ray.comparison.folders import read_run, read_sweep
from ssat_ray.comparison.outcomes import VALIDATION, gpu_seconds, merged
from ssat_ray.comparison.sources import read_sources
from ssat_ray.errors import UserError
from ssat_ray.plan import build_plan


def copy_of(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_an_outcome_has_the_numbers_of_results_json(invented: Any) -> None:
    reading = read_run(invented.runs / "plain", "plain")
    results = json.loads((invented.runs / "plain" / "results.json").read_text())
    assert [one.row for one in reading.outcomes] == [row["row"] for row in results["rows"]]
    for one, row in zip(reading.outcomes, results["rows"], strict=True):
        assert one.seeds == (0, 1, 2)
        for attack, entry in row["accuracy"].items():
            assert list(one.accuracy[attack].values()) == entry["by_seed"]
            assert one.mean(attack) == pytest.approx(entry["mean"])
            assert one.names[attack] == entry["name"]
        assert list(one.accuracy[VALIDATION].values()) == row["validation"]
        assert one.seconds == row["seconds"]
        assert one.images == row["images"]["labelled"] + row["images"]["pool"]
        assert one.peak_memory == row["peak_memory_bytes"]["max"]
        assert one.machines == tuple(results["made_by"]["machines"])
        assert one.candidate == (one.row in ("pcs", "lcs-km"))
        assert one.lower_bounds == ((0, 1, 2) if one.row == "full" else ())
        assert one.settings["select.ratio"] == 0.2 and "seeds" not in one.settings
        assert one.gpu_seconds == 0
    assert ("plain", results["warnings"][0]) in reading.warnings


def test_digests_and_flags_are_those_of_the_plan(invented: Any) -> None:
    plan = build_plan(invented.config("rows=[none,random,pcs,lcs-km,full]", "seeds=[0,1,2]"))
    for one in read_run(invented.runs / "plain", "plain").outcomes:
        assert one.digests == {s: plan.jobs[one.row, s, "train"].digest for s in (0, 1, 2)}
        assert one.test_set == plan.jobs[one.row, 0, "labelled"].digest
        for attack in ("clean", "pgd", "apgd-ce"):
            flags = one.load_flags(attack, one.seeds)
            assert flags is not None
            np.testing.assert_allclose(100 * flags.mean(1), list(one.accuracy[attack].values()))
        assert one.load_flags("autoattack", one.seeds) is None


def test_what_was_spent_counts_every_artefact_once(invented: Any) -> None:
    names = ["grid/k5r10", "grid/k5r40"]
    apart = [read_sources([name], invented.runs).spent for name in names]
    both = read_sources([*names, names[0]], invented.runs).spent
    assert apart[0] is not None and apart[1] is not None and both is not None
    assert both == {**apart[0], **apart[1]}
    assert sum(both.values()) < sum(apart[0].values()) + sum(apart[1].values())
    results = json.loads((invented.runs / "grid" / "k5r10" / "results.json").read_text())
    assert sum(apart[0].values()) == pytest.approx(results["total_wall_seconds"])


def test_the_kept_recipe_is_counted_where_it_was_trained(invented: Any) -> None:
    spent = read_run(invented.runs / "plain", "plain").spent
    results = json.loads((invented.runs / "plain" / "results.json").read_text())
    labels = [stage["label"] for stage in results["stages"]]
    assert "train none seed 0 recipe half-rate" in labels and "train none seed 0" in labels
    assert spent is not None and len(spent) == len(results["stages"]) - 3


def test_a_sweep_has_its_trials_and_says_which_have_no_results(invented: Any) -> None:
    reading = read_sweep(invented.runs / "grid", "grid")
    assert reading.keys == ("cluster.k", "select.ratio")
    assert len(reading.outcomes) == 18
    assert {one.row for one in reading.outcomes if one.candidate} == {"lcs-km"}
    (odd,) = reading.unfinished
    assert (odd.name, odd.status) == ("grid/odd", "failed") and "no space" in odd.cause
    assert odd.settings == {"cluster.k": 40, "select.ratio": 0.1}


def test_baselines_that_trials_share_are_there_once(invented: Any) -> None:
    outcomes = read_sources(["grid"], invented.runs).outcomes
    rows = [one.row for one in outcomes]
    assert {row: rows.count(row) for row in rows} == {"lcs-km": 6, "random": 2, "full": 1}
    (full,) = (one for one in outcomes if one.row == "full")
    assert len(full.trials) == 6
    assert "select.ratio" not in full.settings and "cluster.k" not in full.settings
    random = {one.settings["select.ratio"]: one for one in outcomes if one.row == "random"}
    assert len(random[0.1].trials) == 3 and "cluster.k" not in random[0.1].settings


def test_an_attack_that_a_later_run_added_joins_the_trial(invented: Any) -> None:
    outcomes = read_sources(["grid", "attacked"], invented.runs).outcomes
    assert len(outcomes) == 9
    joined = [one for one in outcomes if "attacked" in one.trials]
    assert {one.row for one in joined} == {"lcs-km", "random", "full"}
    for one in joined:
        assert list(one.accuracy["autoattack"]) == [1]
        assert one.names["autoattack"] == "AutoAttack"
        assert ("autoattack", 1) in one.flags
    assert sum("autoattack" in one.accuracy for one in outcomes) == 3


def test_the_same_training_with_other_seconds_stays_apart(invented: Any, tmp_path: Path) -> None:
    """As of another cluster."""
    other = copy_of(invented.runs / "grid" / "k5r10", tmp_path / "elsewhere")

    def slower(results: dict[str, Any]) -> None:
        for row in results["rows"]:
            row["seconds"] = {stage: 2 * value for stage, value in row["seconds"].items()}

    edit(other / "results.json", slower)
    outcomes = read_sources(["grid/k5r10", str(other)], invented.runs).outcomes
    assert len(outcomes) == 6
    assert outcomes[3].seconds["total"] == pytest.approx(2 * outcomes[0].seconds["total"])
    assert outcomes[3].trials == (str(other),)


def test_merging_keeps_what_each_knows(outcome: Any) -> None:
    first = outcome("pcs", 80.0, trials=("a",), settings={"x": 1, "y": 2}, peak_memory=None)
    second = outcome("pcs", 80.0, trials=("b",), settings={"x": 1, "y": 3}, test_set="t")
    (found,) = merged([first, second])
    assert found.trials == ("a", "b") and found.settings == {"x": 1}
    assert found.peak_memory == 2.0**30 and found.test_set == "t"
    assert len(merged([first, outcome("pcs", 80.1), outcome("easy", 80.0)])) == 3


def test_trials_may_say_their_row_and_folder(invented: Any, tmp_path: Path) -> None:
    """The row as an axis of the space; `run` where the folder is not called as the trial."""
    folder = copy_of(invented.runs / "grid", tmp_path / "grid")
    (folder / "k5r10").rename(folder / "elsewhere")

    def change(sweep: dict[str, Any]) -> None:
        sweep["file"]["row"] = None
        sweep["trials"] = sweep["trials"][:2]
        sweep["trials"][0] |= {"run": "elsewhere", "row": "lcs-km", "cause": None}
        sweep["trials"][1]["settings"]["row"] = "random"

    edit(folder / "sweep.json", change)
    reading = read_sweep(folder, "grid")
    assert [one.row for one in reading.outcomes if one.candidate] == ["lcs-km", "random"]
    assert reading.keys == ("cluster.k", "select.ratio")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("file"), "is no sweep .* KeyError 'file'"),
        (lambda s: s["trials"][0].pop("settings"), "is no sweep .* KeyError 'settings'"),
        (lambda s: s["trials"][0].pop("status"), "is no sweep .* KeyError 'status'"),
        (lambda s: s.update(trials=3), "is no sweep"),
        (lambda s: s["file"].pop("row"), "KeyError 'row'"),
        (lambda s: s["file"].update(row="easy"), "lack the swept row easy"),
        (lambda s: [t.update(status="failed") for t in s["trials"]], "none of its 7 trials is"),
        (lambda s: s["trials"][6].update(status="finished"), "results.json does not exist"),
    ],
)
def test_a_sweep_that_cannot_be_read_is_refused(
    change: Callable[[dict[str, Any]], Any], said: str, invented: Any, tmp_path: Path
) -> None:
    folder = copy_of(invented.runs / "grid", tmp_path / "grid")
    edit(folder / "sweep.json", change)
    with pytest.raises(UserError, match=said):
        read_sweep(folder, "grid")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r.update(kind="selection"), "goal=selection"),
        (lambda r: r.pop("rows"), "KeyError 'rows'"),
        (lambda r: r["rows"][0]["accuracy"].pop("pgd"), "KeyError 'pgd'"),
        (lambda r: r["rows"][0]["accuracy"]["pgd"].update(seeds=[0], by_seed=[1]), "PGD accuracy"),
        (lambda r: r["rows"][0].pop("seconds"), "KeyError 'seconds'"),
        (lambda r: r.pop("stages"), "KeyError 'stages'"),
    ],
)
def test_results_that_lack_what_is_needed_are_refused(
    change: Callable[[dict[str, Any]], Any], said: str, invented: Any, tmp_path: Path
) -> None:
    folder = copy_of(invented.runs / "plain", tmp_path / "plain")
    edit(folder / "results.json", change)
    with pytest.raises(UserError, match=said):
        read_run(folder, "plain")


def test_results_of_another_configuration_than_the_run_lose_its_artefacts(
    invented: Any, tmp_path: Path
) -> None:
    folder = copy_of(invented.runs / "plain", tmp_path / "plain")
    edit(folder / "run.json", lambda run: run["config"]["select"].update(ratio=0.3))
    reading = read_run(folder, "plain")
    assert "another configuration" in reading.warnings[-1][1]
    assert all(one.digests == {} and one.gpu_seconds is None for one in reading.outcomes)


def test_a_copy_without_run_or_store_still_compares(invented: Any, tmp_path: Path) -> None:
    folder = copy_of(invented.runs / "plain", tmp_path / "plain")
    (folder / "run.json").unlink()
    assert read_run(folder, "plain").outcomes[0].digests == {}
    found = read_run(invented.runs / "plain", "plain", tmp_path / "no-store").outcomes[0]
    assert found.flags == {} and found.digests


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("plane", r"plane is no finished run and no sweep \(did you mean 'plain'\?\)"),
        ("empty", "empty has neither results.json nor sweep.json"),
        ("damaged", "results.json is no JSON file"),
        ("list", "must hold an object, found list"),
        ("http://me:secret@host#run", "has a password in it"),
    ],
)
def test_names_that_stand_for_nothing(name: str, said: str, tmp_path: Path, invented: Any) -> None:
    runs = tmp_path / "runs"
    for folder in ("empty", "damaged", "list"):
        (runs / folder).mkdir(parents=True)
    (runs / "damaged" / "results.json").write_text("{")
    (runs / "list" / "results.json").write_text("[]")
    shutil.copytree(invented.runs / "plain", runs / "plain")
    with pytest.raises(UserError, match=said) as error:
        read_sources([name], runs)
    assert "secret" not in str(error.value)


def test_gpu_seconds_are_reserved_gpus_times_seconds() -> None:
    seconds = {"train": 100.0, "generate": 10.0, "select": 5.0, "score": 1.0, "total": 116.0}
    runtime = {"gpus_per_worker": 1, "train_workers": [1, 4], "gpus_per_actor": 0.5, "actors": 4}
    assert gpu_seconds(seconds, runtime, [2, 2]) == 100 * 2 + (10 + 1) * 2
    assert gpu_seconds(seconds, runtime, [None]) == 100 * 4 + 22
    assert gpu_seconds(seconds, {**runtime, "train_workers": 3}, []) == 100 * 3 + 22
