"""checkpoint: a published file becomes the intermediate model, or a message says why not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ssat_ray import pipeline
from ssat_ray.config import Config, RuntimeConfig
from ssat_ray.data.labelled import LabelledSet, unit_float
from ssat_ray.errors import UserError
from ssat_ray.loading import load_config
from ssat_ray.models.files import load_classifier
from ssat_ray.models.registry import build_classifier
from ssat_ray.plan import build_plan
from ssat_ray.stages.base import StageContext
from ssat_ray.store import Job, Store


def published(config: Config, path: Path, num_classes: int = 10) -> torch.nn.Module:
    model = build_classifier(config.model, (1, 8, 8), num_classes, seed=3)
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    torch.save({"model_state_dict": state, "epoch": 7}, path)
    return model.eval()


def execute(config: Config, root: Path) -> tuple[Store, Job]:
    plan, store = build_plan(config), Store(root / "store")
    jobs = [job for job in plan.unique if job.stage in ("labelled", "checkpoint")]
    context = StageContext(store, RuntimeConfig())
    pipeline.execute(jobs, context, pipeline.Watcher())
    return store, plan.jobs["lcs-km", 0, "intermediate"]


def test_a_published_file_is_the_intermediate_model(tmp_path: Path) -> None:
    path = tmp_path / "published.pt"
    config = load_config("digits", [f"intermediate.checkpoint={path}"])
    model = published(config, path)
    store, job = execute(config, tmp_path)
    record = store.record(job)
    assert record is not None and record["bytes_read"] == path.stat().st_size
    assert record["weights"] == "model_state_dict: module.*"
    x = torch.rand(5, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(load_classifier(store.folder(job))(x), model(x))
    labelled = LabelledSet.load(store.folder(job.inputs["labelled"]))
    images, labels = labelled.tensors("validation")
    with torch.no_grad():
        right = (model(unit_float(images)).argmax(1) == labels).double().mean().item()
    assert record["val_clean"] == pytest.approx(100 * right)
    assert np.isfinite(record["seconds"])


def test_a_file_of_another_model_is_a_user_error(tmp_path: Path) -> None:
    path = tmp_path / "published.pt"
    config = load_config("digits", [f"intermediate.checkpoint={path}"])
    published(config, path, num_classes=4)
    with pytest.raises(UserError, match=r"published\.pt has logits\.\w+ \(4.* instead of \(10"):
        execute(config, tmp_path)
