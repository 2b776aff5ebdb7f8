"""bench sampling, tiny: both ways run, and the line says what they cost and how their images compare."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ssat_ray.bench import sampling

pytestmark = [pytest.mark.ray, pytest.mark.slow]
SMALL = (
    "pretrain={channels: [8, 16], norm_num_groups: 2, num_steps: 20, num_timesteps: 100}",
    "intermediate.num_steps=20",
    "generate={num_images: 100, num_inference_steps: 5}",
)


def test_few_steps_cost_less(tmp_path: Path) -> None:
    (line,) = sampling.run(50, 2, tmp_path, SMALL)
    assert line.what == "50 images, 5 steps of dpmsolver++ against 100 ancestral"
    assert len(line.ours) == len(line.bare) == 2 and line.ratio > 5
    assert set(line.notes) == {"label agreement", "coverage", "median margin"}
    for text in line.notes.values():
        assert re.fullmatch(r"[\d.e-]+ against [\d.e-]+ \([+-][\d.]+%\)", text), text
