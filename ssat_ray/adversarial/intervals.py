"""Bootstrap intervals of accuracies and of paired differences, over seeds and test images.

Three training seeds give only a narrow look at the variance between seeds: a bootstrap of S seeds
finds (S - 1) / S of it on average (two thirds at S = 3), and one draw in S ** (S - 1) repeats a
single seed. So intervals at small S cover less than their level where seeds differ much; at S = 1
they say nothing about seeds at all. Read them as lower bounds on the uncertainty.
"""

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float, float]


def _check_flags(flags: NDArray[np.bool_], name: str) -> NDArray[np.bool_]:
    flags = np.asarray(flags)
    if flags.ndim != 2 or flags.size == 0:
        raise ValueError(f"{name} has shape {flags.shape}; must be (seeds, images), not empty")
    if flags.dtype != np.bool_:
        raise ValueError(f"{name} has dtype {flags.dtype}; must be bool, True where correct")
    return flags


def _crossed_bootstrap(
    values: NDArray[np.int8], level: float, num_resamples: int, seed: int
) -> Interval:
    """Percentile interval of the mean of `values` (S, N), rows and columns resampled apart."""
    if not 0.0 < level < 1.0:
        raise ValueError(f"level is {level}; must lie between 0 and 1, for instance 0.95")
    if num_resamples < 1:
        raise ValueError(f"num_resamples is {num_resamples}; must be 1 or more")
    num_seeds, num_images = values.shape
    # Images with equal columns are exchangeable: drawing how often each distinct column occurs
    # has the same distribution as drawing images, and there are few distinct columns.
    columns, counts = np.unique(values, axis=1, return_counts=True)
    rng = np.random.default_rng(seed)
    image_draws = rng.multinomial(num_images, counts / num_images, size=num_resamples)
    seed_draws = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=num_resamples)
    totals = ((seed_draws @ columns.astype(np.int64)) * image_draws).sum(axis=1)
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(totals / (num_seeds * num_images), [tail, 1.0 - tail])
    return float(values.mean(dtype=np.float64)), float(low), float(high)


def bootstrap_interval(
    flags: NDArray[np.bool_], *, level: float = 0.95, num_resamples: int = 2000, seed: int = 0
) -> Interval:
    """Accuracy with a percentile-bootstrap interval over seeds and test images together.

    Each resample draws S seeds with replacement and, crossed with them, N images with
    replacement (the same images for every seed). With S = 1 only images are resampled. See the
    module's first lines on how little three seeds tell about the variance between seeds.

    Args:
        flags: (S, N) bool, True where the model of that seed is right on that image.
        level: coverage, 0.95 for a 95 % interval.
        num_resamples: number of bootstrap resamples.
        seed: of the resampling.

    Returns:
        mean, low, high; fractions in [0, 1].

    Raises:
        ValueError: flags are not a non-empty 2-d bool array, or a setting is out of range.

    Source: Efron and Tibshirani 1993, chapter 13; Owen 2007 (crossed); method.md section 7.
    """
    checked = _check_flags(flags, "flags")
    return _crossed_bootstrap(checked.astype(np.int8), level, num_resamples, seed)


def paired_difference(
    a: NDArray[np.bool_],
    b: NDArray[np.bool_],
    *,
    level: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Accuracy of `a` minus accuracy of `b` with an interval, paired by seed and image.

    Pairing removes what both share (hard images, a lucky seed), so the interval is narrower than
    that of two separate accuracies. The difference is established at `level` where the interval
    leaves out 0; the caution about few seeds in the module's first lines applies.

    Args:
        a, b: (S, N) bool; row s is the same seed and column n the same image in both.
        level, num_resamples, seed: as in `bootstrap_interval`.

    Returns:
        mean, low, high of a - b; fractions in [-1, 1].

    Raises:
        ValueError: shapes differ, or as in `bootstrap_interval`.

    Source: method.md section 7.
    """
    first, second = _check_flags(a, "a"), _check_flags(b, "b")
    if first.shape != second.shape:
        raise ValueError(f"a has shape {first.shape}, b {second.shape}; pairs need equal shapes")
    difference = first.astype(np.int8) - second.astype(np.int8)
    return _crossed_bootstrap(difference, level, num_resamples, seed)
