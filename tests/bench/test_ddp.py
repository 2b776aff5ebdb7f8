"""The bench of two DDP workers, tiny: both groups run, and the line says what they are."""

from __future__ import annotations

import pytest

from ssat_ray.bench import ddp
from ssat_ray.bench.step import Case
from ssat_ray.config import ModelConfig

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_the_line() -> None:
    model = ModelConfig(widths=(8, 16), strides=(1, 2))
    case = Case("tiny", model, (1, 8, 8), 16, "float32", bar=0.85)
    (line,) = ddp.run(1, (case,), seconds=0.3)
    assert line.what == "step of two workers, tiny, batch 16, float32" and line.bar == 0.85
    assert 0 < line.ours[0] < 5 and 0 < line.bare[0] < 5
    assert line.notes["one"].endswith("images/s")
