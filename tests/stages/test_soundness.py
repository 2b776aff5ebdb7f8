"""Signs of masked gradients by row and seed, and the one that fails a run."""

from __future__ import annotations

from typing import Any

import pytest

from ssat_ray.errors import RunFailed
from ssat_ray.stages.soundness import masked_rows, masking, require_sound, signs_of


def entry(seeds: list[int], by_seed: list[float], signs: list[list[str]]) -> dict[str, Any]:
    return {"seeds": seeds, "by_seed": by_seed, "signs": signs}


def make_row(name: str = "full", **accuracy: dict[str, Any]) -> dict[str, Any]:
    """Two seeds; clean 90 %, PGD 60 and 62 %."""
    sound = {
        "clean": entry([0, 1], [90.0, 90.0], [[], []]),
        "pgd": entry([0, 1], [60.0, 62.0], [[], []]),
    }
    return {"row": name, "seeds": [0, 1], "accuracy": sound | accuracy}


def test_signs_belong_to_their_seed() -> None:
    attacked = entry([1], [50.0], [["AutoAttack: no gradient"]])
    row = make_row(autoattack=attacked)
    assert signs_of(row, 0) == []
    mislead, own = signs_of(row, 1)
    assert mislead.startswith("pgd accuracy 0.6200 exceeds autoattack 0.5000")
    assert own == "AutoAttack: no gradient"
    assert masking([make_row("none"), row]) == [
        f"full, seed 1: {mislead}",
        "full, seed 1: AutoAttack: no gradient",
    ]


def test_autoattack_above_pgd_fails_and_is_named() -> None:
    equal = {"rows": [make_row(), make_row("random", autoattack=entry([1], [62.0], [[]]))]}
    require_sound(equal)
    above = {"rows": [make_row("random", autoattack=entry([0, 1], [59.0, 62.01], [[], []]))]}
    assert masked_rows(above) == ["random (seed 1)"]
    with pytest.raises(RunFailed, match=r"random \(seed 1\).*--allow-masking"):
        require_sound(above)
