"""What few seeds and the test images say about accuracies and their differences; which costs pay.

Everything is in points of percent. Seeds are blocks: all configurations of one seed share its pool,
its first model and its start, so a difference is taken seed by seed before anything is averaged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri, stdtrit

Values = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

LEVEL = 0.95
MOST_SEEDS = 10_000
"""More seeds than this are as good as no answer."""


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval; `low` and `high` are None where nothing tells the spread."""

    mean: float
    low: float | None
    high: float | None

    @property
    def settled(self) -> int:
        """+1 or -1 where the interval lies above or below 0, otherwise 0."""
        if self.low is None or self.high is None:
            return 0
        return int(self.low > 0) - int(self.high < 0)


@dataclass(frozen=True)
class Noise:
    """The spread of one outcome of one seed beyond what its configuration and its seed do to it.

    Attributes:
        variance: points², an estimate.
        degrees_of_freedom: of the estimate.
        num_outcomes, num_seeds: of the table that it was estimated from: those with two cells or more.
    """

    variance: float
    degrees_of_freedom: int
    num_outcomes: int
    num_seeds: int

    def degrees(self, num_seeds: int) -> int:
        """Degrees of freedom of the estimate if the same outcomes all had so many seeds."""
        return (self.num_outcomes - 1) * (num_seeds - 1)


def block_noise(table: npt.ArrayLike) -> Noise | None:
    """The residual mean square of a randomised block design: outcomes x seeds, one value a cell.

    The model is value = outcome + seed + noise, with one variance of the noise for all outcomes. With
    two outcomes it gives the paired t test: 2 variance / S is the squared standard error of their mean
    difference, with S - 1 degrees of freedom.

    Args:
        table: (C, S) accuracies in percent of C outcomes under S seeds; NaN where an outcome lacks a seed.

    Returns:
        The noise. Its degrees of freedom are the cells less the rank of the model, so (C - 1)(S - 1) of a
        full table; None where they are 0.

    Source: Montgomery, Design and Analysis of Experiments, chapter 4.
    """
    values = np.asarray(table, np.float64)
    if values.ndim != 2:
        raise ValueError(f"table has shape {values.shape}; must be (outcomes, seeds)")
    known = ~np.isnan(values)
    outcome, seed = np.nonzero(known)
    design = np.hstack([np.eye(values.shape[0])[outcome], np.eye(values.shape[1])[seed]])
    found, _, rank, _ = np.linalg.lstsq(design, values[known], rcond=None)
    degrees = len(outcome) - int(rank)
    if degrees == 0:
        return None
    variance = float(((values[known] - design @ found) ** 2).sum() / degrees)
    sizes = [int((known.sum(axis) > 1).sum()) for axis in (1, 0)]
    return Noise(variance, degrees, *sizes)


def t_quantile(level: float, degrees: float) -> float:
    """The two-sided quantile of Student's t: half the width of an interval in standard errors."""
    _check_level(level)
    return float(stdtrit(degrees, 0.5 + level / 2))


def seed_interval(values: npt.ArrayLike, level: float = LEVEL) -> Interval:
    """The mean over seeds with Student's t interval; without bounds for a single seed.

    Args:
        values: (S,) one number a seed.
    """
    values = np.asarray(values, np.float64)
    mean, num_seeds = float(values.mean()), len(values)
    if num_seeds < 2:
        return Interval(mean, None, None)
    error = float(values.std(ddof=1)) / num_seeds**0.5
    half = t_quantile(level, num_seeds - 1) * error
    return Interval(mean, mean - half, mean + half)


def noise_interval(values: npt.ArrayLike, noise: Noise, level: float = LEVEL) -> Interval:
    """The mean over seeds, with the noise of a whole table; what seeds do to all alike is left out.

    Such intervals are for outcomes that are compared under the same seeds.

    Args:
        values: (S,) one number a seed.
    """
    values = np.asarray(values, np.float64)
    mean = float(values.mean())
    error = (noise.variance / len(values)) ** 0.5
    half = t_quantile(level, noise.degrees_of_freedom) * error
    return Interval(mean, mean - half, mean + half)


def difference_interval(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    *,
    noise: Noise | None,
    image_variance: float = 0.0,
    level: float = LEVEL,
) -> Interval:
    """The mean of `a` minus `b`, paired by seed, with an interval over seeds and, if known, over images.

    Over seeds it is Student's t with the `noise`. The squared half widths of seeds and images are added
    (Banerjee's method for components of variance with different degrees of freedom, which covers at least
    the level).

    Args:
        a, b: (S,) accuracies in percent; entry s is the same seed in both.
        noise: from `block_noise`, of a table that has both; None where nothing tells it: then the interval
            is about these trainings, and over images alone.
        image_variance: of the mean difference, points²; from `image_variance`. 0 where the flags are not
            at hand: then the interval is about these test images.

    Returns:
        Without bounds where there is neither `noise` nor an `image_variance`.

    Source: Banerjee 1960, Sankhya 22, 357-358.
    """
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ValueError(f"a has shape {first.shape}, b {second.shape}; pairs need equal shapes")
    mean = float((first - second).mean())
    if noise is None and image_variance <= 0:
        return Interval(mean, None, None)
    half = float(ndtri(0.5 + level / 2)) ** 2 * image_variance
    if noise is not None:
        half += _squared_half(noise, len(first), noise.degrees_of_freedom, level)
    return Interval(mean, mean - half**0.5, mean + half**0.5)


def _squared_half(noise: Noise, num_seeds: int, degrees: int, level: float) -> float:
    """Of the interval of a difference over `num_seeds` seeds."""
    return t_quantile(level, degrees) ** 2 * 2 * noise.variance / num_seeds


def image_variance(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """What the choice of the test images adds to the variance of a mean difference, points².

    With several seeds it is the images' component of a two-way random model (seeds x images), without
    what seed and image do together, which the spread over seeds has in it already. With one seed it is
    the whole variance of the mean over images.

    Args:
        a, b: (S, N) bool, image n still correct under seed s.

    Source: Searle, Casella and McCulloch, Variance Components, section 4.3.
    """
    first, second = np.asarray(a), np.asarray(b)
    if first.shape != second.shape or first.ndim != 2 or first.shape[1] < 2:
        raise ValueError(
            f"a has shape {first.shape}, b {second.shape}; must be equal, (seeds, images)"
        )
    table = 100.0 * (first.astype(np.float64) - second)
    num_seeds, num_images = table.shape
    if num_seeds == 1:
        return float(table.var(ddof=1) / num_images)
    by_image = table.mean(0)
    rest = table - table.mean(1, keepdims=True) - by_image + table.mean()
    together = (rest**2).sum() / ((num_seeds - 1) * (num_images - 1))
    between = num_seeds * by_image.var(ddof=1)
    return float(max(0.0, between - together) / (num_seeds * num_images))


def seeds_needed(
    mean: float,
    noise: Noise,
    *,
    image_variance: float = 0.0,
    used: int = 1,
    level: float = LEVEL,
) -> int | None:
    """The least number of seeds whose interval of a difference leaves out 0, if mean and spread stay.

    A repetition with so many seeds settles the difference at about even odds, since its mean falls on
    either side of today's.

    Args:
        mean: of the difference, points.
        noise: its degrees of freedom grow with the seeds.
        image_variance: as in `difference_interval`; it does not fall with more seeds.
        used: seeds that did not settle it.

    Returns:
        More than `used`; None where no number up to `MOST_SEEDS` does: the difference is 0, or smaller than what
        the test images leave open.
    """

    def settles(num_seeds: int) -> bool:
        seeds = _squared_half(noise, num_seeds, noise.degrees(num_seeds), level)
        return seeds + float(ndtri(0.5 + level / 2)) ** 2 * image_variance < mean**2

    if not settles(MOST_SEEDS):
        return None
    fails, enough = used, MOST_SEEDS  # the width falls with every seed
    while enough - fails > 1:
        middle = (fails + enough) // 2
        fails, enough = (fails, middle) if settles(middle) else (middle, enough)
    return enough


def pareto_front(costs: npt.ArrayLike, gain: npt.ArrayLike) -> Mask:
    """Which points no other one beats: at most the same costs and at least the same gain, one strictly.

    Args:
        costs: (N, K), each the less the better.
        gain: (N,), the more the better.

    Returns:
        (N,) bool; equal points are on the front together.
    """
    gains = np.asarray(gain, np.float64)
    points = np.column_stack([np.asarray(costs, np.float64), -gains])
    no_worse = np.all(points[:, None] <= points, axis=2)
    better = np.any(points[:, None] < points, axis=2)
    return np.asarray(~np.any(no_worse & better, axis=0))


def as_json(interval: Interval) -> dict[str, Any]:
    """`mean`, `low`, `high` and `settled`."""
    bounds = {"mean": interval.mean, "low": interval.low, "high": interval.high}
    return {**bounds, "settled": interval.settled}


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; must lie between 0 and 1, for instance 0.95")
