"""Outcomes from MLflow, in real SQLite stores: those of a run's folder, those of a sweep's nested runs, mistakes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.entities import Metric, Param

from ssat_ray import tracking
from ssat_ray.comparison.analysis import Question, analyse
from ssat_ray.comparison.folders import read_run
from ssat_ray.comparison.outcomes import Outcome, merged
from ssat_ray.comparison.sources import read_sources
from ssat_ray.comparison.tracked import read_tracked, value_of
from ssat_ray.errors import UserError
from ssat_ray.loading import flatten
from ssat_ray.plan import build_plan
from ssat_ray.store import Store


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database, made once: the migrations take seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


SETTINGS = ("cluster.k=20", "select.ratio=0.4", "evaluate.autoattack_seeds=[1]")


@pytest.fixture(scope="module")
def uri(invented: Any, database: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The store to which the run `attacked` was logged by the code that logs real runs."""
    copy = tmp_path_factory.mktemp("tracked") / "mlflow.db"
    shutil.copyfile(database, copy)
    found = f"sqlite:///{copy}"
    config = invented.config(*SETTINGS, f"runtime.tracking_uri={found}")
    results = json.loads((invented.runs / "attacked" / "results.json").read_text())
    store, folder = Store(config.runtime.store), invented.runs / "attacked"
    tracking.log_run(config, build_plan(config), store, results, folder)
    return found


def numbers(one: Outcome) -> Outcome:
    """What the two sources must agree on."""
    seconds = {stage: pytest.approx(value) for stage, value in one.seconds.items()}
    return replace(one, trials=(), source="", flags={}, seconds=seconds)


def test_a_logged_run_has_the_outcomes_of_its_folder(invented: Any, uri: str) -> None:
    tracked = {one.row: one for one in read_tracked(uri, "attacked").outcomes}
    local = {one.row: one for one in read_run(invented.runs / "attacked", "attacked").outcomes}
    assert set(tracked) == set(local) == {"lcs-km", "random", "full"}
    for row, one in tracked.items():
        assert numbers(one) == numbers(local[row])
        assert one.trials == (f"{uri}#attacked",) and one.source == uri
    assert read_tracked(uri).outcomes == read_tracked(uri, "attacked").outcomes
    assert read_tracked(uri).spent is None
    told = [line for _, line in read_run(invented.runs / "attacked", "attacked").warnings]
    assert told and [line for _, line in read_tracked(uri).warnings] == told


def test_a_folder_and_its_logged_run_are_one(invented: Any, uri: str) -> None:
    both = read_sources(["attacked", f"{uri}#attacked"], invented.runs)
    assert len(both.outcomes) == 3
    assert both.outcomes[0].trials == ("attacked", f"{uri}#attacked")
    assert both.outcomes[0].flags and both.outcomes[0].candidate
    content = analyse(read_sources([uri], invented.runs), Question())
    assert content["recommended"]["export"] is None
    assert content["outcomes"][0]["accuracy"]["autoattack"]["name"] == "AutoAttack"


def log_sweep(uri: str, invented: Any, finished: bool = True) -> None:
    """A parent and nested runs as a sweep logs them: a trial and seed each, baselines with a prefix."""
    client = mlflow.MlflowClient(uri)
    experiment = client.create_experiment(tracking.EXPERIMENT)
    parent = client.create_run(experiment, tags={"kind": "sweep", "mlflow.runName": "grid"})
    for trial in ("k5r10", "k20r40", "odd"):
        folder = invented.runs / "grid" / (trial if trial != "odd" else "k5r40")
        config = flatten(json.loads((folder / "run.json").read_text())["config"])
        results = json.loads((folder / "results.json").read_text())
        digests = {
            j["seed"]: j["digest"]
            for j in json.loads((folder / "run.json").read_text())["jobs"]
            if (j["row"], j["stage"]) == ("lcs-km", "train")
        }
        for index, seed in enumerate(results["seeds"]):
            tags = {"mlflow.parentRunId": parent.info.run_id, "trial": trial, "status": "finished"}
            swept = {key: config[key] for key in ("cluster.k", "select.ratio")}
            tags |= {tracking.SETTINGS: json.dumps(swept)}
            tags |= {"mlflow.runName": f"cluster.k=? seed {seed}", "digest.train": digests[seed]}
            failed = trial == "odd" or not finished
            tags |= {"status": "failed", "cause": "no space left"} if failed else {}
            run = client.create_run(experiment, tags=tags).info.run_id
            params = {"row": "lcs-km", "seed": seed, **config}
            entries = [Param(k, str(v)) for k, v in params.items()]
            client.log_batch(run, params=entries[:100])
            client.log_batch(run, params=entries[100:])
            if failed:
                client.set_terminated(run, "FAILED")
                continue
            for row in results["rows"]:
                prefix = "" if row["row"] == "lcs-km" else f"{row['row']}."
                final = {f"test.{a}": e["by_seed"][index] for a, e in row["accuracy"].items()}
                final |= {f"seconds.{stage}": value for stage, value in row["seconds"].items()}
                final |= {"images.pool": row["images"]["pool"]}
                metrics = [Metric(f"{prefix}{k}", float(v), 0, 0) for k, v in final.items()]
                client.log_batch(run, metrics=metrics)
            client.set_terminated(run)


@pytest.fixture(scope="module")
def sweep(invented: Any, database: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    copy = tmp_path_factory.mktemp("swept") / "mlflow.db"
    shutil.copyfile(database, copy)
    log_sweep(f"sqlite:///{copy}", invented)
    return f"sqlite:///{copy}"


def test_a_logged_sweep_has_its_trials_baselines_and_failures(invented: Any, sweep: str) -> None:
    reading = read_tracked(sweep, "grid")
    outcomes = merged(reading.outcomes)
    found = [(one.row, one.candidate, len(one.trials)) for one in outcomes]
    assert sorted(found) == [
        ("full", False, 2),
        ("lcs-km", True, 1),
        ("lcs-km", True, 1),
        ("random", False, 1),
        ("random", False, 1),
    ]
    local = read_sources(["grid/k5r10", "grid/k20r40"], invented.runs).outcomes
    for one in outcomes:
        (same,) = (o for o in local if (o.row, o.accuracy["pgd"]) == (one.row, one.accuracy["pgd"]))
        assert one.seconds == pytest.approx(same.seconds) and one.pool == same.pool
        assert one.names["pgd"] == same.names["pgd"] == "PGD-40"
        assert one.digests == (same.digests if one.candidate else {})
        assert one.images is None and one.peak_memory is None, "not logged"
    (odd,) = reading.unfinished
    assert (odd.name, odd.status, odd.cause) == (f"{sweep}#grid/odd", "failed", "no space left")
    assert odd.settings == {"cluster.k": 5, "select.ratio": 0.4}
    assert reading.keys == ("cluster.k", "select.ratio")
    names = {
        e["name"]
        for e in analyse(replace(reading, outcomes=tuple(outcomes)), Question())["outcomes"]
    }
    assert {"lcs-km k=5 ratio=0.1", "lcs-km k=20 ratio=0.4", "full"} <= names


def test_the_ensemble_is_called_autoattack_only_where_the_run_says_so(
    invented: Any, uri: str
) -> None:
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id
    query = "tags.`attack.autoattack` = 'AutoAttack'"
    runs = client.search_runs([experiment], query)
    assert len(runs) == 6
    for run in runs:
        client.delete_tag(run.info.run_id, "attack.autoattack")
    try:
        (first, *_) = read_tracked(uri).outcomes
        assert first.names["autoattack"] == "strongest ensemble"
    finally:
        for run in runs:
            client.set_tag(run.info.run_id, "attack.autoattack", "AutoAttack")


def test_mistakes(uri: str, database: Path, invented: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no parent run other; the parent runs are attacked"):
        read_tracked(uri, "other")
    with pytest.raises(UserError, match="has no experiment ssat_ray"):
        read_tracked(f"sqlite:///{database}")
    with pytest.raises(UserError, match=r"cannot be read .*does not exist"):
        read_tracked(f"sqlite:///{tmp_path / 'none.db'}")
    assert not (tmp_path / "none.db").exists()
    with pytest.raises(UserError, match="htp://server: MLflow cannot be read"):
        read_tracked("htp://server")


def test_a_sweep_without_results_and_runs_of_one_name(
    invented: Any, database: Path, tmp_path: Path
) -> None:
    shutil.copyfile(database, tmp_path / "a.db")
    uri = f"sqlite:///{tmp_path / 'a.db'}"
    log_sweep(uri, invented, finished=False)
    with pytest.raises(UserError, match="no nested run of grid is finished"):
        read_tracked(uri, "grid")
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id
    second = client.create_run(experiment, tags={"mlflow.runName": "grid"}).info.run_id
    tags = {"mlflow.parentRunId": second}
    child = client.create_run(experiment, tags=tags).info.run_id
    client.log_batch(child, params=[Param("row", "pcs"), Param("seed", "0")])
    client.set_terminated(child)
    with pytest.raises(UserError, match=f"has 2 parent runs grid; give the id of one: .*{second}"):
        read_tracked(uri, "grid")
    with pytest.raises(UserError, match=r"nested run .* has no metric test\.pgd"):
        read_tracked(uri, second)


@pytest.mark.parametrize(
    ("text", "value"),
    [("0.25", 0.25), ("None", None), ("[8, 16]", [8, 16]), ("digits", "digits"), ("True", True)],
)
def test_parameters_are_texts_of_values(text: str, value: Any) -> None:
    assert value_of(text) == value
