"""bench generate, tiny: both sides run, and the line names them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ssat_ray.bench import generate


def test_the_start_weighs_more_on_fewer_images() -> None:
    """10 s of start and 1 ms an image against 0.99 ms: 40,000 take 50 s against 39.6, 10,000 20 s against 9.9."""
    assert generate.with_start(1.0, 10.0, 50.0, 39.6) == pytest.approx(39.6 / 50)
    assert generate.with_start(0.25, 10.0, 50.0, 39.6) == pytest.approx(9.9 / 20)


@pytest.mark.ray
@pytest.mark.slow
def test_a_few_images_are_made_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "BARE_IMAGES", 1_000)
    (line,) = generate.run(2_000, 1, tmp_path)
    assert len(line.ours) == 1 and len(line.bare) == 2
    assert 0 < line.ratio < 1.2  # start-up alone outweighs so few images
    assert "images/s" in line.notes and "threads" in line.notes["bare"]
    start = float(line.notes["of ours"].partition(" s ")[0])
    assert 1 < start < line.ours[0]
    assert re.fullmatch(r"about [\d.]+", line.notes["at the preset's 10,000 images"])
    assert list((tmp_path / "store" / "generate").glob("*/stage.json"))
