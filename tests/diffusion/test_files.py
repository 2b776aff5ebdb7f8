"""A DDPM as files: the same model gives the same bytes, whichever folder it was loaded from."""

from __future__ import annotations

from pathlib import Path

import torch

from ssat_ray.config import PretrainConfig
from ssat_ray.diffusion.files import load_ddpm, pipeline_files
from ssat_ray.diffusion.noise import build_scheduler
from ssat_ray.models.unet import build_unet

CONFIG = PretrainConfig(channels=(16, 16), norm_num_groups=4, num_timesteps=50)


def test_a_loaded_model_is_saved_as_it_was(tmp_path: Path) -> None:
    unet = build_unet(CONFIG, (1, 8, 8), 3, seed=0)
    files = pipeline_files(unet, build_scheduler(CONFIG))
    assert {"unet/config.json", "scheduler/scheduler_config.json", "model_index.json"} < set(files)
    for folder in (tmp_path / "one", tmp_path / "other"):
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        loaded, scheduler = load_ddpm(folder)
        assert all(
            torch.equal(a, b) for a, b in zip(unet.parameters(), loaded.parameters(), strict=True)
        )
        again = pipeline_files(loaded, scheduler)
        assert again == files
        assert not any(str(tmp_path).encode() in content for content in again.values())
