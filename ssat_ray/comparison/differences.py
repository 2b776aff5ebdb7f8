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
    """The noise of all outcomes under the seeds that all of them have; None without two of each."""
    common = sorted(set.intersection(*(set(one.accuracy[attack]) for one in outcomes)))
    # The same training read from two places must not count twice.
    unique = {(one.row, tuple(one.values(attack, common))): one for one in outcomes}
    table = [one.values(attack, common) for one in unique.values()]
    return block_noise(np.array(table)) if common else None


def difference(a: Outcome, b: Outcome, attack: str, noise: Noise | None) -> Record | None:
    """Accuracy of `a` minus that of `b` under the seeds that both have; None without a common seed.

    Returns:
        `mean`, `low`, `high`, `settled`; `seeds`, `by_seed`; `over`: what the interval is over; `alone`:
        the interval of these two alone over seeds; `seeds_needed` to settle it, None where it is settled
        or no number would.
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
    noise = block_noise(np.stack([first, second])) if noise is None else noise
    found = difference_interval(first, second, noise=noise, image_variance=images or 0.0)
    over = ["seeds"] if noise is not None else []
    alone = seed_interval(first - second)
    needed = None
    if noise is not None and not found.settled:
        needed = seeds_needed(found.mean, noise, image_variance=images or 0.0)
    return {
        **as_json(found),
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
