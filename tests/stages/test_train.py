"""train: the best recipe, images, steps and the checkpoint of a real run."""

from __future__ import annotations

from typing import Any

import pytest
from safetensors.torch import load_file

from ssat_ray.models.files import load_classifier

pytestmark = pytest.mark.ray


def test_none_keeps_its_best_recipe(tiny_run: Any, folder: Any) -> None:
    job = tiny_run.plan.jobs["none", 0, "train"]
    record = tiny_run.store.record(job)
    validation = {name: tiny_run.store.record(j)["val_pgd"] for name, j in job.inputs.items()}
    assert set(validation) == {"default", "half"}
    assert validation[record["recipe"]] == max(validation.values())
    assert record["validation_by_recipe"] == validation
    chosen = tiny_run.store.folder(job.inputs[record["recipe"]]) / "model.safetensors"
    kept = tiny_run.store.folder(job) / "model.safetensors"
    assert kept.read_bytes() == chosen.read_bytes()


def test_image_counts_and_steps(tiny_run: Any) -> None:
    counts = {"none": 0, "random": 100, "lcs-km": 100, "full": 400}
    for row, pool in counts.items():
        record = tiny_run.store.record(tiny_run.plan.jobs[row, 0, "train"])
        assert record["images"] == {"labelled": 300, "pool": pool}
        plateau = record["plateau_step"]
        assert record["steps"] == plateau + max(1, round(0.25 * plateau))
        assert record["history"][-1]["step"] == record["steps"]
        assert (record["bytes_read"] > 0) == (pool > 0)


def test_classifier_checkpoint_is_safetensors_and_json(tiny_run: Any, folder: Any) -> None:
    folder = tiny_run.store.folder(tiny_run.plan.jobs["full", 0, "train"])
    assert sorted(p.name for p in folder.iterdir()) == [
        "model.json",
        "model.safetensors",
        "stage.json",
    ]
    model = load_classifier(folder)
    weights = load_file(folder / "model.safetensors")
    assert set(model.state_dict()) == set(weights)
    assert not any(p.requires_grad for p in model.parameters())
