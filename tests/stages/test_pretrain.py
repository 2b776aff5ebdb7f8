"""pretrain: a diffusers pipeline folder that has learnt."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ssat_ray.diffusion.files import load_ddpm

pytestmark = pytest.mark.ray


def test_ddpm_is_a_diffusers_pipeline_folder(tiny_run: Any, folder: Any) -> None:
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
