"""How far two samples' counts differ: population stability index, chi-squared and Kolmogorov-Smirnov.

Shape legend: B bins. All functions take counts, so samples of any size are compared by their histograms.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from ssat_ray.selection.scores import Array, Float64, Int64

_EXPECTED_ROWS = 5.0  # Cochran's rule for the chi-squared approximation
_EMPTY = 0.5  # rows that an empty bin counts as, so that the logarithm is finite


def group_rare(reference: Array, num_rows: int) -> Int64:
    """(B,) counts -> (B,) group of each bin, so that most groups expect 5 of `num_rows` rows.

    Bins that expect 5 stay alone. The others are put together in order, never with a frequent one:
    rows in a bin that was empty in the reference must not vanish in a large one.
    """
    expected = np.asarray(reference, np.float64) * (num_rows / max(1, int(np.sum(reference))))
    group, filled = np.empty(len(expected), np.int64), 0.0
    rare = np.flatnonzero(expected < _EXPECTED_ROWS)
    frequent = np.flatnonzero(expected >= _EXPECTED_ROWS)
    group[frequent] = np.arange(len(frequent))
    current = len(frequent)
    for i in rare:
        if filled >= _EXPECTED_ROWS:
            current, filled = current + 1, 0.0
        group[i] = current
        filled += expected[i]
    return group


def psi(reference: Array, counts: Array) -> float:
    """Population stability index sum (q - p) ln(q / p) of two (B,) counts, p and q their shares.

    An empty bin counts as half a row of its sample. Bins empty in both say nothing. Raises ValueError
    if a sample is empty.
    """
    reference, counts = _both(reference, counts)
    p = np.where(reference > 0, reference, _EMPTY) / reference.sum()
    q = np.where(counts > 0, counts, _EMPTY) / counts.sum()
    return float(((q - p) * np.log(q / p)).sum())


def expected_psi(reference: Array, counts: Array) -> float:
    """What `psi` is on average for two samples of one distribution: (B - 1) (1/n + 1/m).

    Source: Yurdakul, Statistical properties of population stability index, 2018.
    """
    reference, counts = _both(reference, counts)
    return float((len(counts) - 1) * (1 / reference.sum() + 1 / counts.sum()))


def homogeneity_p(reference: Array, counts: Array) -> float:
    """Pearson's chi-squared test that two (B,) counts are of one distribution: its p-value."""
    reference, counts = _both(reference, counts)
    if len(counts) < 2:
        return 1.0
    n, m = reference.sum(), counts.sum()
    statistic = ((counts * n - reference * m) ** 2 / (n * m * (counts + reference))).sum()
    half = torch.tensor([(len(counts) - 1) / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def ks_statistic(reference: Array, counts: Array) -> float:
    """Largest difference of the two distribution functions at the bins' ends, in [0, 1]."""
    reference, counts = np.asarray(reference, np.float64), np.asarray(counts, np.float64)
    difference = np.cumsum(reference) / reference.sum() - np.cumsum(counts) / counts.sum()
    return float(np.abs(difference).max())


def ks_p(statistic: float, n: int, m: int) -> float:
    """Asymptotic p-value of the two-sample Kolmogorov-Smirnov statistic of n and m rows.

    Kolmogorov's series with Stephens's correction for small samples (J. R. Stat. Soc. B 32, 1970).
    Too large, so cautious, where scores are tied.
    """
    root = math.sqrt(n * m / (n + m))
    return kolmogorov_sf((root + 0.12 + 0.11 / root) * statistic)


def kolmogorov_sf(x: float) -> float:
    """P(K > x) of the Kolmogorov distribution."""
    if x < 0.2:
        return 1.0  # the series converges slowly there, and differs from 1 by less than 1e-12
    terms = (2 * (-1) ** (j - 1) * math.exp(-2.0 * (j * x) ** 2) for j in range(1, 20))
    return min(1.0, max(0.0, math.fsum(terms)))


def _both(reference: Array, counts: Array) -> tuple[Float64, Float64]:
    """The bins that are not empty in both, as float64."""
    reference, counts = np.asarray(reference, np.float64), np.asarray(counts, np.float64)
    if reference.shape != counts.shape or reference.ndim != 1:
        raise ValueError(f"counts must be (B,) both, found {reference.shape}, {counts.shape}")
    if reference.sum() <= 0 or counts.sum() <= 0:
        raise ValueError("a sample without rows cannot be compared")
    found = (reference + counts) > 0
    return reference[found], counts[found]
