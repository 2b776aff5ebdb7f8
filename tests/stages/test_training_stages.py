"""intermediate, pretrain and train as they ran in a real two-worker Ray Train group."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ssat_ray.models.files import load_classifier
from ssat_ray.stages.generate import load_ddpm

pytestmark = pytest.mark.ray


@pytest.mark.parametrize("stage", ["intermediate", "pretrain", "train"])
def test_two_workers_in_one_gloo_group(tiny_run: Any, stage: str) -> None:
    for job in tiny_run.plan.unique:
        if job.stage == stage:
            record = tiny_run.store.record(job)
            assert record["world_size"] == 2
            assert record["backend"] == "gloo"
            assert len(set(record["worker_pids"])) == 2
            assert record["seconds"] > 0
            assert record["peak_pss_bytes"] > 50 * 2**20


def test_all_rows_train_in_the_same_worker_group(tiny_run: Any) -> None:
    """The start of a worker group is paid once, not once a row."""
    jobs = [j for j in tiny_run.plan.unique if j.stage == "train"]
    records = [tiny_run.store.record(j) for j in jobs if j.params["recipe"] != "best-of-recipes"]
    assert len(records) == 9
    assert len({tuple(r["worker_pids"]) for r in records}) == 1
    assert sum(r["startup_seconds"] > 1 for r in records) == 1


def test_none_keeps_its_best_recipe(tiny_run: Any) -> None:
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


def test_classifier_checkpoint_is_safetensors_and_json(tiny_run: Any) -> None:
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


def test_ddpm_is_a_diffusers_pipeline_folder(tiny_run: Any) -> None:
    from diffusers import DDPMPipeline

    folder = tiny_run.store.folder(tiny_run.plan.jobs["full", 0, "pretrain"])
    pipeline = DDPMPipeline.from_pretrained(folder)
    unet, scheduler = load_ddpm(folder)
    assert pipeline.scheduler.config["prediction_type"] == "v_prediction"
    assert scheduler.config["beta_schedule"] == "squaredcos_cap_v2"
    for a, b in zip(pipeline.unet.parameters(), unet.parameters(), strict=True):
        assert torch.equal(a, b)
    losses = [
        h["loss"]
        for h in tiny_run.store.record(tiny_run.plan.jobs["full", 0, "pretrain"])["history"]
    ]
    assert losses[-1] < 0.8 * losses[0]


def test_intermediate_has_learnt(tiny_run: Any) -> None:
    record = tiny_run.store.record(tiny_run.plan.jobs["pcs", 0, "intermediate"])
    assert record["val_clean"] > 50
    assert np.isfinite(json.loads(json.dumps(record["history"]))[-1]["loss"])
