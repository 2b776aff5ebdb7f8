"""bench generate, tiny: both sides run, and the line names them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssat_ray.bench import generate

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_a_few_images_are_made_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "BARE_IMAGES", 1_000)
    (line,) = generate.run(2_000, 1, tmp_path)
    assert len(line.ours) == 1 and len(line.bare) == 2
    assert 0 < line.ratio < 1.2  # start-up alone outweighs so few images
    assert "images/s" in line.notes and "threads" in line.notes["bare"]
    assert list((tmp_path / "store" / "generate").glob("*/stage.json"))
