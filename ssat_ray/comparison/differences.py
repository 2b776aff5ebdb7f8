"""Outcomes against one another: the noise of all of them, intervals, paired differences, seeds to settle one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ssat_ray.comparison.outcomes import Outcome
from ssat_ray.comparison.statistics import (
    Noise,
    as_json,
    block_noise,
    difference_interval,
    image_variance,
    noise_interval,
    seed_interval,
    seeds_needed,
)

Record = dict[str, Any]


def pooled_noise(outcomes: Sequence[Outcome], attack: str) -> Noise | None:
    """The noise of all outcomes; None where no two of them have two seeds in common."""
    seeds = sorted({seed for one in outcomes for seed in one.accuracy[attack]})
    cells = [(one.row, one.accuracy[attack]) for one in outcomes]
    # The same trainings, read from two places or with further seeds, must not count twice.
    unique: list[tuple[str, dict[int, float]]] = []
    for row, found in sorted(cells, key=lambda cell: -len(cell[1])):
        if not any(row == other and found.items() <= more.items() for other, more in unique):
            unique.append((row, found))
    return block_noise([[found.get(seed, np.nan) for seed in seeds] for _, found in unique])


def difference(a: Outcome, b: Outcome, attack: str, noise: Noise | None) -> Record | None:
    """Accuracy of `a` minus that of `b` under the seeds that both have; None without a common seed.

    Returns:
        `mean`, `low`, `high`; `settled`, 0 where the interval is not over seeds: then it is about these
        trainings; `seeds`, `by_seed`; `over`: what the interval is over; `alone`: the interval of these two
        alone over seeds; `seeds_needed` to settle it, None where it is settled or no number would.
    """
    seeds = sorted(set(a.accuracy[attack]) & set(b.accuracy[attack]))
    if not seeds:
        return None
    first, second = a.values(attack, seeds), b.values(attack, seeds)
    images = None
    if a.test_set is not None and a.test_set == b.test_set:
        flags = a.load_flags(attack, seeds), b.load_flags(attack, seeds)
        if flags[0] is not None and flags[1] is not None and flags[0].shape == flags[1].shape:
            images = image_variance(flags[0], flags[1])
    found = difference_interval(first, second, noise=noise, image_variance=images or 0.0)
    over = ["seeds"] if noise is not None else []
    alone = seed_interval(first - second)
    needed = None
    if noise is not None and not found.settled:
        more: dict[str, Any] = {"image_variance": images or 0.0, "used": len(seeds)}
        needed = seeds_needed(found.mean, noise, **more)
    return {
        **as_json(found),
        "settled": 0 if noise is None else found.settled,
        "seeds": seeds,
        "by_seed": (first - second).tolist(),
        "over": over + ([] if images is None else ["images"]),
        "alone": {"low": alone.low, "high": alone.high},
        "seeds_needed": needed,
    }


def accuracy_interval(one: Outcome, attack: str, noise: Noise | None) -> Record:
    """The mean over seeds with an interval over seeds, by the noise of the whole table where there is one."""
    values = list(one.accuracy[attack].values())
    return as_json(seed_interval(values) if noise is None else noise_interval(values, noise))
