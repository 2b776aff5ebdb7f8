"""A DDPM from elsewhere: both layouts, what is refused and when. test_alone.py fine-tunes and samples one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    SchedulerMixin,
)
from safetensors.torch import load_file, save_file

from ssat_ray.config import RuntimeConfig
from ssat_ray.diffusion.files import load_ddpm, load_pipeline, pipeline_digest
from ssat_ray.diffusion.sampling import build_solver, initial_noise, sample
from ssat_ray.errors import UserError
from ssat_ray.loading import load_config
from ssat_ray.pipeline import Watcher, execute
from ssat_ray.plan import Plan, build_plan
from ssat_ray.stages.base import StageContext
from ssat_ray.store import Store
from tests.unets import save_pipeline, tiny_unet


def adopt(folder: Path, tmp_path: Path, *settings: str) -> tuple[Plan, Store]:
    """What the driver does before any work starts."""
    config = load_config(
        "digits", [f"pretrain.checkpoint={folder}", "rows=[random, lcg-km]", *settings]
    )
    plan, store = build_plan(config), Store(tmp_path / "store")
    jobs = [job for job in plan.unique if job.stage in ("labelled", "ddpm")]
    assert [job.stage for job in jobs] == ["labelled", "ddpm"]
    execute(jobs, StageContext(store, RuntimeConfig()), Watcher())
    return plan, store


@pytest.mark.parametrize("layout", ["folders", "top"])
def test_both_layouts_are_taken_and_sampled(tmp_path: Path, layout: str) -> None:
    folder = save_pipeline(tmp_path / "theirs", tiny_unet(), layout)
    plan, store = adopt(folder, tmp_path)
    job = plan.jobs["random", 0, "pretrain"]
    assert job.stage == "ddpm" and plan.jobs["lcg-km", 0, "pretrain"] == job
    assert plan.jobs["lcg-km", 0, "finetune"].inputs["ddpm"] == job
    unet, scheduler = load_ddpm(store.folder(job))
    assert scheduler.config["prediction_type"] == "epsilon"
    assert scheduler.config["beta_schedule"] == "linear"
    for name, weight in tiny_unet().state_dict().items():
        assert torch.equal(unet.state_dict()[name], weight)
    config = load_config("digits", ["generate.num_inference_steps=3"]).generate
    noise = initial_noise(np.arange(5), (1, 8, 8), 0)
    images = sample(unet, scheduler, noise, None, config)
    assert images.shape == (5, 1, 8, 8) and images.dtype == torch.uint8


@pytest.mark.parametrize(
    "theirs",
    [
        DPMSolverMultistepScheduler(1000, use_karras_sigmas=True, final_sigmas_type="sigma_min"),
        DDIMScheduler(1000, set_alpha_to_one=False),
    ],
)
@pytest.mark.parametrize("sampler", ["ddim", "dpmsolver++", "ancestral"])
def test_settings_of_the_sampler_it_was_saved_with_are_not_revived(
    tmp_path: Path, theirs: SchedulerMixin, sampler: str
) -> None:
    """Timesteps are trailing, as documented, whatever spaced them before."""
    folder = save_pipeline(tmp_path / "theirs", tiny_unet())
    theirs.save_pretrained(folder / "scheduler")
    plan, store = adopt(folder, tmp_path)
    _, scheduler = load_ddpm(store.folder(plan.jobs["random", 0, "pretrain"]))
    assert torch.equal(scheduler.alphas_cumprod, DDPMScheduler(1000).alphas_cumprod)
    solver = build_solver(scheduler, sampler, 20)
    assert solver.timesteps.tolist() == list(range(999, 0, -50))
    changed = {
        "use_karras_sigmas": True,
        "final_sigmas_type": "sigma_min",
        "set_alpha_to_one": False,
    }
    assert [key for key, value in changed.items() if solver.config.get(key) == value] == []


def test_the_names_of_the_first_ddpms_of_the_hub_are_taken(tmp_path: Path) -> None:
    folder = save_pipeline(tmp_path / "theirs", tiny_unet(), "top")
    old = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}

    def before(name: str) -> str:
        for new, former in old.items():
            name = name.replace(new, former)
        return name

    _rewrite(folder, lambda weights: {before(name): w for name, w in weights.items()})
    unet, _ = load_pipeline(folder)
    for name, weight in tiny_unet().state_dict().items():
        assert torch.equal(unet.state_dict()[name], weight)


def test_the_contents_decide_not_the_place(tmp_path: Path) -> None:
    folder = save_pipeline(tmp_path / "a", tiny_unet())
    shutil.copytree(folder, tmp_path / "b")
    assert pipeline_digest(tmp_path / "b") == pipeline_digest(folder)
    plans = [
        build_plan(load_config("digits", [f"pretrain.checkpoint={tmp_path / name}"]))
        for name in ("a", "b")
    ]
    jobs = [plan.jobs["full", 0, "pool"] for plan in plans]
    assert jobs[0].digest == jobs[1].digest
    weights = next((tmp_path / "b").rglob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert pipeline_digest(tmp_path / "b") != pipeline_digest(folder)


def _wrong_class(folder: Path) -> None:
    path = folder / "unet" / "config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"_class_name": "UNet2DConditionModel"})
    )


def _cut(folder: Path) -> None:
    path = next(folder.rglob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:100])


def _rewrite(folder: Path, change: Callable[[dict], dict]) -> None:
    path = next(folder.rglob("*.safetensors"))
    before = load_file(path)
    after = change(before)
    assert set(after) != set(before)
    save_file(after, path)


def _lacking(folder: Path) -> None:
    _rewrite(folder, lambda weights: {n: w for n, w in weights.items() if n != "conv_in.bias"})


def _another(folder: Path) -> None:
    _rewrite(folder, lambda weights: weights | {"conv_in.scale": torch.ones(1)})


def _wrapped(folder: Path) -> None:
    _rewrite(folder, lambda weights: {f"module.{name}": w for name, w in weights.items()})


def _no_scheduler(folder: Path) -> None:
    shutil.rmtree(folder / "scheduler")


def _other_scheduler(folder: Path) -> None:
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"_class_name": "ScoreSdeVeScheduler"})
    )


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (_wrong_class, "its model is UNet2DConditionModel"),
        (_cut, "cannot be loaded as a diffusers pipeline"),
        (_lacking, "they lack conv_in.bias."),
        (_another, "they have besides conv_in.scale."),
        (_wrapped, r"they lack conv_in.bias, .* and \d+ more"),
        (_other_scheduler, "its scheduler is ScoreSdeVeScheduler, which is no DDPM's"),
        (_no_scheduler, "it has no scheduler_config.json"),
        (_empty, "is no diffusers pipeline"),
    ],
)
def test_what_is_no_pipeline_is_refused(
    tmp_path: Path, harm: Callable[[Path], None], message: str
) -> None:
    folder = save_pipeline(tmp_path / "theirs", tiny_unet())
    harm(folder)
    with pytest.raises(UserError, match=message):
        adopt(folder, tmp_path)


@pytest.mark.parametrize(
    ("unet", "scheduler", "message"),
    [
        ({"sample_size": 16}, {}, "images of 16 pixels, the labelled ones are 8 x 8"),
        (
            {"in_channels": 3, "out_channels": 3},
            {},
            "images of 3 channels, the labelled ones have 1",
        ),
        ({"out_channels": 2}, {}, "learned variance"),
        ({}, {"variance_type": "learned_range"}, "learned variance"),
        ({}, {"rescale_betas_zero_snr": True}, "its last timestep has no signal"),
        ({"class_embed_type": "timestep"}, {}, "has class_embed_type='timestep'"),
        ({"num_class_embeds": 4}, {}, "conditioned on 4 classes, the labelled set has 10"),
    ],
)
def test_a_model_of_other_images_is_refused(
    tmp_path: Path, unet: dict, scheduler: dict, message: str
) -> None:
    folder = save_pipeline(tmp_path / "theirs", tiny_unet(**unet), **scheduler)
    with pytest.raises(UserError, match=message):
        adopt(folder, tmp_path)


def test_a_place_that_is_nowhere_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no folder, and no id of the hub either"):
        build_plan(load_config("digits", [f"pretrain.checkpoint={tmp_path / 'nothing'}"]))
