"""MLflow as a real run filled it: one parent, one child a row, metrics by step, a model without pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch

from ssat_ray.models.files import load_classifier

pytestmark = pytest.mark.ray


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


def test_one_parent_and_one_child_a_row(tiny_run: Any, runs: dict[str, Any]) -> None:
    children = {name: run for name, run in runs.items() if name != "parent"}
    assert set(children) == {f"{row} seed 0" for row in tiny_run.config.rows}
    parent = runs["parent"].info.run_id
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parent}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}


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


def test_report_and_results_are_artifacts(
    client: mlflow.MlflowClient, runs: dict[str, Any]
) -> None:
    names = {a.path for a in client.list_artifacts(runs["parent"].info.run_id)}
    assert {"report.html", "results.json", "run.json"} <= names


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


def test_no_pickle_in_the_artifacts(tiny_run: Any) -> None:
    files = [p for p in Path(tiny_run.cwd / "store" / "mlflow-artifacts").rglob("*") if p.is_file()]
    assert any(p.suffix == ".safetensors" for p in files)
    assert [p for p in files if p.suffix in (".pkl", ".pickle", ".pt", ".pth", ".joblib")] == []
