"""bench score, tiny: both sides run, and the line names them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssat_ray.bench import score

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_a_tiny_pool_is_scored_and_compared(tmp_path: Path) -> None:
    (line,) = score.run(30_000, 1, ["3-layer CNN"], tmp_path)
    assert len(line.ours) == 1 and len(line.bare) == 2
    assert 0 < line.ratio < 1.2  # start-up alone outweighs so few images
    assert "images/s" in line.notes and "threads" in line.notes["bare"]
    common = float(line.notes["boundary images common to float32 and bf16"].rstrip("%"))
    assert 90 < common <= 100
    assert list((tmp_path / "store" / "score").glob("*/stage.json"))
