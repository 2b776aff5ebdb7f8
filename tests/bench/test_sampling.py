"""bench sampling, tiny: both ways run, and the line says what they cost and how their images compare."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from ssat_ray.bench import sampling
from ssat_ray.data.pool import Pool
from ssat_ray.diffusion.quality import coverage_density

SMALL = (
    "pretrain={channels: [8, 16], norm_num_groups: 2, num_steps: 20, num_timesteps: 100}",
    "intermediate.num_steps=20",
    "generate={num_images: 101, num_inference_steps: 5}",
)


def test_what_is_more_than_three_percent_off_is_named() -> None:
    """On either side of the long way's figure; 3 % itself is not."""
    long = {"label agreement": 1.0, "coverage": 0.5, "median margin": 2.0}
    near = {"label agreement": 0.98, "coverage": 0.514, "median margin": 1.95}
    found = sampling.deviations(near, long)
    assert found["coverage"] == "0.514 against 0.5 (+2.8%)" and found["above 3%:"] == "none"
    far = {"label agreement": 0.96, "coverage": 0.49, "median margin": 2.1}
    assert sampling.deviations(far, long)["above 3%:"] == "label agreement, median margin"


@pytest.mark.ray
@pytest.mark.slow
def test_few_steps_cost_less(tmp_path: Path) -> None:
    (line,) = sampling.run(50, 2, tmp_path, SMALL)
    assert line.what == "50 images, 5 steps of dpmsolver++ against 100 ancestral"
    assert len(line.ours) == len(line.bare) == 2 and line.ratio > 5
    *figures, far = line.notes
    assert figures == ["label agreement", "coverage", "median margin"] and far == "above 3%:"
    for name in figures:
        text = line.notes[name]
        assert re.fullmatch(r"[\d.e-]+ against [\d.e-]+ \([+-]([\d.]+|inf)%\)", text), text
    sides = sampling.Sides(tmp_path, ["rows=[lcs-km]", *SMALL])
    (record,) = (tmp_path / "store" / "generate").glob("*/stage.json")
    ids = [sides.ids(repeat, 2000) for repeat in range(2)]
    assert not set(Pool(record.parent).load().ids.tolist()) & set(np.concatenate(ids).tolist())
    assert len(np.unique(np.concatenate(ids))) == 4000
    made = [sides.make("short", own) for own in ids]
    real = np.concatenate([sides.labelled.splits[n][0] for n in ("labelled", "validation")])
    covered = [
        coverage_density(sides.embedder(real)[0], sides.embedder(images[: len(real)])[0])[0]
        for images in made
    ]
    seen = sides.seen(made, ids)
    assert seen["coverage"] == pytest.approx(np.mean(covered)) and len(real) == 1000
    predicted = np.concatenate([sides.embedder(images)[1].argmax(1) for images in made])
    assert seen["label agreement"] == (predicted == np.concatenate(ids) % 10).mean()
