"""Registered models, in the real run's MLflow store: versions, names that are refused, runs not logged."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch

from ssat_ray import cli
from ssat_ray.errors import UserError
from ssat_ray.models.files import load_classifier
from ssat_ray.registration import register
from ssat_ray.store import Store
from ssat_ray.tracking import STATE


def said(row: str, name: str, run: Any, out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The last line of `ssat export --register`."""
    arguments = ["export", "tiny", "--row", row, "--register", name, "--force", "--out", str(out)]
    with contextlib.chdir(run.cwd):
        cli.app(arguments, standalone_mode=False)
    return capsys.readouterr().out.splitlines()[-1]


@pytest.mark.ray
def test_each_classifier_is_one_version(
    tiny_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = "MLflow: version 1 of the registered model robust-digits"
    assert said("full", "robust-digits", tiny_run, tmp_path, capsys) == first
    assert said("full", "robust-digits", tiny_run, tmp_path, capsys) == first
    assert "version 2" in said("none", "robust-digits", tiny_run, tmp_path, capsys)
    assert "version 1" in said("none", "other", tiny_run, tmp_path, capsys)
    uri = f"sqlite:///{tiny_run.cwd / 'store' / 'mlflow.db'}"
    version = mlflow.MlflowClient(uri).get_model_version("robust-digits", "1")
    train = tiny_run.plan.jobs["full", 0, "train"]
    assert version.tags["ssat_ray.train"] == f"train/{train.digest}"
    assert "row `full`" in version.description
    mlflow.set_tracking_uri(uri)
    loaded = mlflow.pyfunc.load_model("models:/robust-digits/1")
    x = np.random.default_rng(0).random((5, 1, 8, 8), np.float32)
    expected = load_classifier(tiny_run.store.folder(train))(torch.from_numpy(x))
    np.testing.assert_allclose(loaded.predict(x), expected.numpy(), atol=1e-5)


@pytest.mark.ray
def test_a_name_that_mlflow_refuses(
    tiny_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="--register a/b: MLflow refuses"):
        said("full", "a/b", tiny_run, tmp_path, capsys)
    assert list(tmp_path.iterdir()) == [], "nothing is written before that"


@pytest.mark.parametrize("state", [None, {"report": "new"}, {"report": "old", "finished": True}])
def test_a_run_that_was_not_logged(state: dict[str, Any] | None, tmp_path: Path) -> None:
    if state is not None:
        (tmp_path / STATE).write_text(json.dumps(state))
    with pytest.raises(UserError, match=r"mlflow\.json does not say that the run was logged"):
        register(
            "robust",
            tmp_path,
            "new",
            "full seed 0",
            uri=None,
            store=Store(tmp_path / "store"),
            description="",
            tags={},
        )
