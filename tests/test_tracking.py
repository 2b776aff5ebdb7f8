"""MLflow, in real SQLite stores: what a run fills it with, kills at every step, stores that fail."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from mlflow.entities import ViewType

from ssat_ray import pipeline, tracking
from ssat_ray.config import Config, ModelConfig
from ssat_ray.errors import UserError
from ssat_ray.loading import load_config
from ssat_ray.models.files import classifier_files, load_classifier
from ssat_ray.models.registry import build_classifier
from ssat_ray.places import write_atomic
from ssat_ray.plan import Plan, build_plan
from ssat_ray.provenance import library_versions
from ssat_ray.store import Store

MODEL = ModelConfig(widths=(4,), strides=(2,))
SHAPE, CLASSES = (1, 8, 8), 10


@pytest.fixture(scope="module")
def client(tiny_run: Any) -> mlflow.MlflowClient:
    uri = f"sqlite:///{tiny_run.cwd / 'store' / 'mlflow.db'}"
    mlflow.set_tracking_uri(uri)
    return mlflow.MlflowClient(uri)


@pytest.fixture(scope="module")
def runs(client: mlflow.MlflowClient, tiny_run: Any) -> dict[str, Any]:
    """The runs of the first command: its parent and its children."""
    state = json.loads((tiny_run.folder / "mlflow.json").read_text())
    found = {"parent": client.get_run(state["parent"])}
    return found | {name: client.get_run(run) for name, run in state["children"].items()}


@pytest.mark.ray
def test_one_parent_and_one_child_a_row(tiny_run: Any, runs: dict[str, Any]) -> None:
    children = {name: run for name, run in runs.items() if name != "parent"}
    assert set(children) == {f"{row} seed 0" for row in tiny_run.config.rows}
    parent = runs["parent"].info.run_id
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parent}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}


@pytest.mark.ray
def test_metrics_by_step_equal_the_record(
    tiny_run: Any, client: mlflow.MlflowClient, runs: dict[str, Any]
) -> None:
    run = runs["lcs-km seed 0"]
    record = tiny_run.store.record(tiny_run.plan.jobs["lcs-km", 0, "train"])
    logged = {(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "val_pgd")}
    assert logged == {(h["step"], h["val_pgd"]) for h in record["history"]}
    assert run.data.metrics["test.pgd"] == tiny_run.row("lcs-km")["accuracy"]["pgd"]["by_seed"][0]
    assert run.data.params["select.ratio"] == "0.25"
    assert run.data.tags["digest.train"] == record["digest"]
    assert run.data.tags["version.ray"]
    assert run.data.tags["mlflow.source.git.commit"]


@pytest.mark.ray
def test_report_and_results_are_artifacts(
    client: mlflow.MlflowClient, runs: dict[str, Any]
) -> None:
    names = {a.path for a in client.list_artifacts(runs["parent"].info.run_id)}
    assert {"report.html", "results.json", "run.json"} <= names


@pytest.mark.ray
def test_logged_model_loads_and_predicts(tiny_run: Any, runs: dict[str, Any]) -> None:
    run = runs["full seed 0"]
    uri = run.outputs.model_outputs[0].model_id
    model = mlflow.pyfunc.load_model(f"models:/{uri}")
    x = np.random.default_rng(0).random((5, 1, 8, 8), np.float32)
    expected = load_classifier(tiny_run.store.folder(tiny_run.plan.jobs["full", 0, "train"]))
    np.testing.assert_allclose(model.predict(x), expected(torch.from_numpy(x)).numpy(), atol=1e-5)
    assert model.metadata.signature.inputs.inputs[0].shape == (-1, 1, 8, 8)
    with pytest.raises(mlflow.exceptions.MlflowException):
        model.predict(np.zeros((5, 3, 8, 8), np.float32))


@pytest.mark.ray
def test_no_pickle_in_the_artifacts(tiny_run: Any) -> None:
    files = [p for p in Path(tiny_run.cwd / "store" / "mlflow-artifacts").rglob("*") if p.is_file()]
    assert any(p.suffix == ".safetensors" for p in files)
    assert [p for p in files if p.suffix in (".pkl", ".pickle", ".pt", ".pth", ".joblib")] == []


@dataclass(frozen=True)
class Comparison:
    """A finished comparison of invented numbers: everything is published, nothing was computed."""

    config: Config
    plan: Plan
    store: Store
    results: dict[str, Any]
    folder: Path

    def log(self) -> str:
        return tracking.log_run(self.config, self.plan, self.store, self.results, self.folder)

    @property
    def client(self) -> mlflow.MlflowClient:
        return mlflow.MlflowClient(tracking.tracking_uri(None, self.store))

    @property
    def runs(self) -> dict[str, Any]:
        """Every run there is, deleted ones too; a second one of a name would fail here."""
        experiment = self.client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id
        found = self.client.search_runs([experiment], run_view_type=ViewType.ALL)
        assert len({run.info.run_name for run in found}) == len(found)
        return {run.info.run_name: run for run in found}

    @property
    def models(self) -> list[Any]:
        experiment = self.client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id
        return list(self.client.search_logged_models([experiment]))


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database, made once: the migrations take seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


def settings(tmp_path: Path, *more: str) -> Config:
    own = [f"runtime.store={tmp_path / 'store'}", f"runtime.runs={tmp_path / 'runs'}"]
    return load_config("digits", ["rows=[none,full]", *own, *more])


@pytest.fixture
def comparison(tmp_path: Path, database: Path) -> Comparison:
    config = settings(tmp_path)
    plan, store = build_plan(config), Store(tmp_path / "store")
    folder = tmp_path / "runs" / "invented"
    model = build_classifier(MODEL, SHAPE, CLASSES, seed=0)
    history = [{"step": 40 * i, "seconds": float(i), "val_pgd": 50.0 + i} for i in (1, 2, 3)]
    records = {
        "labelled": {"image_shape": list(SHAPE), "num_classes": CLASSES},
        "train": {"history": history},
    }
    rows = [_row("none", 0), _row("full", 10_000)]
    results: dict[str, Any] = {"rows": rows, "warnings": ["few seeds"]}
    for job in plan.unique:
        files: dict[str, Any] = {}
        if job.stage == "train":
            files = classifier_files(model, MODEL, SHAPE, CLASSES)
        elif job.stage == "report":
            files = {"results.json": json.dumps(results), "report.html": "<!doctype html>"}
        for name, data in files.items():
            write_atomic(store.folder(job) / name, data)
        store.publish(job, records.get(job.stage, {}))
    for name, data in files.items():
        write_atomic(folder / name, data)
    pipeline.write_run(config, plan, folder)
    shutil.copyfile(database, store.root / "mlflow.db")
    return Comparison(config, plan, store, results, folder)


def _row(name: str, pool: int) -> dict[str, Any]:
    accuracy = {"mean": 80.0, "by_seed": [80.0], "seeds": [0], "name": "PGD-40"}
    return {
        "row": name,
        "seeds": [0],
        "recipe": ["default"],
        "images": {"labelled": 300, "pool": pool},
        "accuracy": {"clean": accuracy, "pgd": accuracy},
        "seconds": {"train": 5.0, "total": 5.0},
        "steps": {"total": [120], "hit_max_steps": [False]},
        "peak_memory_bytes": {"train": 2.0**30, "max": 2.0**30},
        "world_size": [2],
        "validation": [78.0],
    }


ONE_OF_EACH = {"invented", "none seed 0", "full seed 0"}


def check_complete(comparison: Comparison) -> None:
    """One parent, one child a row and seed, one model a child, nothing logged twice."""
    runs = comparison.runs
    assert set(runs) == ONE_OF_EACH
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert {run.info.lifecycle_stage for run in runs.values()} == {"active"}
    parent = runs.pop("invented")
    assert parent.data.metrics["full.pgd"] == 80.0
    assert parent.data.tags[tracking.WARNINGS] == "few seeds"
    experiment = comparison.client.get_experiment_by_name(tracking.EXPERIMENT)
    assert tracking.KIND.items() <= experiment.tags.items()
    names = {a.path for a in comparison.client.list_artifacts(parent.info.run_id)}
    assert names == {"report.html", "results.json", "run.json"}
    for run in runs.values():
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        history = comparison.client.get_metric_history(run.info.run_id, "val_pgd")
        assert [m.step for m in history] == [40, 80, 120]
        assert run.data.metrics["validation.pgd"] == 78.0
        assert len(run.outputs.model_outputs) == 1
    assert sorted(m.source_run_id for m in comparison.models) == sorted(
        run.info.run_id for run in runs.values()
    )
    assert {model.status for model in comparison.models} == {"READY"}
    state = json.loads((comparison.folder / tracking.STATE).read_text())
    assert state["finished"] and state["parent"] == parent.info.run_id
    assert state["children"] == {name: run.info.run_id for name, run in runs.items()}


def test_logging_needs_no_active_run_and_changes_nothing_global(
    comparison: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise AssertionError("a global of MLflow was used")

    for name in ("start_run", "set_tracking_uri", "set_experiment"):
        monkeypatch.setattr(mlflow, name, fail)
    before = mlflow.get_tracking_uri(), os.environ.get("MLFLOW_TRACKING_URI")
    parent = comparison.log()
    assert (mlflow.get_tracking_uri(), os.environ.get("MLFLOW_TRACKING_URI")) == before
    assert mlflow.active_run() is None
    check_complete(comparison)
    for method in ("create_run", "log_batch", "log_artifact"):
        monkeypatch.setattr(mlflow.MlflowClient, method, fail)
    assert comparison.log() == parent, "a second command logs nothing"


def test_parent_and_children_name_commit_and_versions(comparison: Comparison) -> None:
    comparison.log()
    wanted = {f"version.{name}": found for name, found in library_versions().items()}
    assert {f"version.{n}" for n in ("ray", "torch", "faiss", "mlflow", "numpy")} <= set(wanted)
    for run in comparison.runs.values():
        assert wanted.items() <= run.data.tags.items()
        assert run.data.tags["mlflow.source.git.commit"]


def test_the_logged_model_pins_what_it_needs_and_predicts(comparison: Comparison) -> None:
    comparison.log()
    model = comparison.models[0]
    folder = Path(model.artifact_location.removeprefix("file://"))
    pinned = (folder / "requirements.txt").read_text().splitlines()
    for name in ("ssat_ray", "torch", "safetensors", "numpy"):
        assert f"{name}=={version(name)}" in pinned
    assert all("==" in line for line in pinned)
    assert model.metrics and {m.run_id for m in model.metrics} == {model.source_run_id}
    loaded = mlflow.pyfunc.load_model(str(folder))
    assert loaded.predict(loaded.input_example).shape == (1, CLASSES)
    x = np.random.default_rng(0).random((3, *SHAPE), np.float32)
    expected = load_classifier(comparison.store.folder(comparison.plan.jobs["full", 0, "train"]))
    np.testing.assert_allclose(loaded.predict(x), expected(torch.from_numpy(x)).numpy(), atol=1e-5)


class KilledError(BaseException):
    """SIGKILL as far as Python can play it: no `except Exception` sees it."""


@contextlib.contextmanager
def killed(owner: Any, name: str, *, after: bool, call: int = 1) -> Iterator[None]:
    """Die right before or after the n-th call of a function; the block must get there."""
    original, calls = getattr(owner, name), 0

    def dying(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and not after:
            raise KilledError
        result = original(*args, **options)
        if calls == call:
            raise KilledError
        return result

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(owner, name, dying)
        yield


def test_killed_at_every_step_it_logs_each_run_once(comparison: Comparison, tmp_path: Path) -> None:
    client = mlflow.MlflowClient
    for owner, name, after, call in [
        (client, "create_run", True, 1),  # an orphan parent that mlflow.json does not name
        (client, "create_run", True, 1),  # the same of a child
        (tracking, "write_atomic", False, 2),  # before the child's id is noted
        (client, "log_batch", True, 2),  # a child with parameters and nothing else
        (client, "create_logged_model", True, 1),
        (client, "log_batch", True, 3),  # a child with metrics and no model
        (client, "log_model_artifacts", False, 1),
        (client, "log_outputs", True, 1),
        (client, "finalize_logged_model", True, 1),
        (client, "set_terminated", True, 1),  # the first child is finished
        (client, "create_run", True, 1),
        (client, "log_artifact", True, 2),  # the second child is finished
        (client, "set_terminated", True, 1),  # all is finished, mlflow.json does not say so
    ]:
        with killed(owner, name, after=after, call=call):
            comparison.log()
    assert set(comparison.runs) == ONE_OF_EACH
    other = settings(tmp_path, "runtime.actors=3")  # a parameter that no result depends on
    Comparison(
        other, comparison.plan, comparison.store, comparison.results, comparison.folder
    ).log()
    check_complete(comparison)


def test_a_killed_run_may_go_on_in_another_store(
    comparison: Comparison, database: Path, tmp_path: Path
) -> None:
    """What `mlflow.json` remembers of the first store must not be looked for in the second."""
    with killed(mlflow.MlflowClient, "log_model_artifacts", after=False):
        comparison.log()
    (comparison.store.root / "mlflow.db").rename(tmp_path / "first.db")
    shutil.copyfile(database, comparison.store.root / "other.db")
    uri = f"sqlite:///{comparison.store.root / 'other.db'}"
    config = settings(tmp_path, f"runtime.tracking_uri={uri}")
    with contextlib.chdir(tmp_path):
        parent = tracking.log_run(
            config, comparison.plan, comparison.store, comparison.results, comparison.folder
        )
    assert mlflow.MlflowClient(uri).get_run(parent).info.status == "FINISHED"


def test_if_logging_fails_the_results_are_there_and_the_same_command_logs(
    comparison: Comparison,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(pipeline, "markdown_table", lambda results: "the table\n")
    artifacts = comparison.store.root / "mlflow-artifacts"
    artifacts.write_text("in the way")

    def command() -> pipeline.Outcome:
        plan = build_plan(comparison.config)
        return pipeline.run(comparison.config, plan, pipeline.Watcher(), name="invented")

    outcome = command()
    assert outcome.results == comparison.results
    assert outcome.untracked and len(outcome.untracked.splitlines()) == 1
    assert (comparison.folder / "results.md").read_text() == "the table\n"
    assert "Traceback" in capsys.readouterr().err
    artifacts.unlink()
    assert command() == replace(outcome, untracked=None)
    check_complete(comparison)


def test_a_bad_uri_ends_the_run_before_any_work(tmp_path: Path) -> None:
    config = settings(tmp_path, "runtime.tracking_uri=htp://server")
    with pytest.raises(UserError, match=r"runtime\.tracking_uri=htp://server"):
        pipeline.run(config, build_plan(config), pipeline.Watcher())
    assert not (tmp_path / "store").exists()


def test_an_unreachable_uri_still_shows_finished_results(
    comparison: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left to compute, so there is nothing to protect by ending early."""
    monkeypatch.setattr(pipeline, "markdown_table", lambda results: "")
    config = settings(comparison.store.root.parent, "runtime.tracking_uri=htp://server")
    outcome = pipeline.run(config, build_plan(config), pipeline.Watcher(), name="invented")
    assert outcome.results == comparison.results
    assert "runtime.tracking_uri=htp://server" in str(outcome.untracked)


def test_check_is_quick_where_nothing_listens(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    before, start = dict(os.environ), time.monotonic()
    with pytest.raises(UserError, match=rf"runtime\.tracking_uri={uri}"):
        tracking.check(uri, Store(tmp_path))
    assert time.monotonic() - start < 20
    assert dict(os.environ) == before


def test_check_ends_where_nobody_answers(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        start = time.monotonic()
        with pytest.raises(UserError, match="no answer within 1 seconds"):
            tracking.check(uri, Store(tmp_path), seconds=1.0)
        assert time.monotonic() - start < 10


def test_check_of_sqlite(tmp_path: Path, database: Path) -> None:
    store = Store(tmp_path / "store")
    tracking.check(None, store)
    assert list(store.root.iterdir()) == [], "the check leaves nothing behind"
    tracking.check(f"sqlite:///{database}", store)
    (store.root / "mlflow.db").write_text("this is not a database" * 50)
    start = time.monotonic()
    with pytest.raises(UserError, match=r"runtime\.tracking_uri=null.*not a database"):
        tracking.check(None, store)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"runtime\.tracking_uri"):
        tracking.check(f"sqlite:///{tmp_path / 'file' / 'mlflow.db'}", store)
    assert time.monotonic() - start < 5
