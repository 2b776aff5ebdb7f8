"""Main effects: what each setting of a sweep does to accuracy by itself, the others averaged over."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ssat_ray.comparison.statistics import LEVEL, Interval, Values, block_noise, t_quantile

Int = npt.NDArray[np.int64]
MOST_LEVELS = 8
"""A number with more values than this is cut into thirds: random search gives each value once."""


@dataclass(frozen=True)
class Levels:
    """A setting's values as groups of configurations.

    Attributes:
        names: of the groups, in order.
        index: (C,) which group each configuration is in.
    """

    names: tuple[str, ...]
    index: Int


@dataclass(frozen=True)
class MainEffects:
    """Effects of all settings on the mean accuracy.

    Attributes:
        effects: for each setting and each of its levels the difference to the average configuration,
            in points; None where the settings vary together, so that they cannot be told apart.
        degrees_of_freedom: for each setting, of its noise; 0 where nothing tells it and the intervals have no
            bounds.
        crossed: whether the noise is that of seeds over a complete grid. Otherwise it is what the
            additive model leaves unexplained, interactions of settings included.
    """

    effects: tuple[tuple[Interval, ...] | None, ...]
    degrees_of_freedom: tuple[int, ...]
    crossed: bool


def levels(values: list[Any]) -> Levels:
    """Group a setting's values: each by itself, or thirds of the numbers where there are many.

    Args:
        values: of the C configurations; numbers, texts, lists, bools or None.
    """
    found = distinct(values)
    if not all(map(_is_number, values)) or len(found) <= MOST_LEVELS:
        place = {value_key(value): i for i, value in enumerate(found)}
        index = np.array([place[value_key(value)] for value in values], np.int64)
        return Levels(tuple(text(value) for value in found), index)
    cuts = [found[round(len(found) * third / 3)] for third in (1, 2)]
    index = np.searchsorted(np.array(cuts, np.float64), np.array(values, np.float64), side="right")
    names = []
    for group in range(3):
        inside = [value for value in found if np.searchsorted(cuts, value, side="right") == group]
        names.append(f"{text(inside[0])} to {text(inside[-1])}")
    return Levels(tuple(names), index.astype(np.int64))


def distinct(values: list[Any]) -> list[Any]:
    """Every value once, numbers first and in order."""
    return sorted({value_key(value): value for value in values}.values(), key=_order)


def value_key(value: Any) -> str:
    """Equal for equal values: 1 and 1.0 are one, true is another."""
    return repr(float(value) if _is_number(value) else value)


def text(value: Any) -> str:
    """A setting's value for people, in four digits where it is a fraction: 0.05, null, [0, 1]."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _order(value: Any) -> tuple[int, float, str]:
    return (0, float(value), "") if _is_number(value) else (1, 0.0, text(value))


def main_effects(factors: Int, table: Values, level: float = LEVEL) -> MainEffects:
    """Least squares of an additive model over configurations, and each level against the average.

    On a complete grid an effect is the mean of the level's configurations minus that of all. Its interval
    there is over seeds: with the noise of the setting's own levels x seeds, since configurations that share
    a value may share a computation of that seed, as one clustering serves all ratios (a split plot). On any
    other set of configurations, and with a single seed, the noise is the residual mean square of the
    additive model.

    Args:
        factors: (C, F) number of the level that each configuration has of each setting.
        table: (C, S) accuracies in percent of C configurations under the same S seeds.

    Source: Montgomery, Design and Analysis of Experiments, chapters 4, 5, 10 and 14.
    """
    num_configurations, num_seeds = table.shape
    counts = [np.bincount(column) for column in factors.T]
    design = _design(factors, counts)
    mean = table.mean(axis=1)
    inverse = np.linalg.pinv(design)
    coefficients = inverse @ mean
    crossed = num_seeds > 1 and _is_grid(factors, counts)
    degrees = num_configurations - int(np.linalg.matrix_rank(design))
    rest = mean - design @ coefficients
    variance = float(rest @ rest) / degrees if degrees else 0.0
    projection = inverse @ design
    found: list[tuple[Interval, ...] | None] = []
    freedom: list[int] = []
    for factor, count, contrasts in zip(
        factors.T, counts, _contrasts(counts, num_configurations), strict=True
    ):
        if crossed:
            own = block_noise([table[factor == number].mean(0) for number in range(len(count))])
            assert own is not None  # two levels or more, two seeds or more
            degrees, variance = own.degrees_of_freedom, own.variance * count[0] / num_seeds
        freedom.append(degrees)
        if not np.allclose(contrasts @ projection, contrasts, atol=1e-8):
            found.append(None)
            continue
        spread = variance * inverse @ inverse.T  # covariance of the coefficients
        half = np.sqrt(np.einsum("ij,jk,ik->i", contrasts, spread, contrasts).clip(min=0.0))
        half *= t_quantile(level, degrees) if degrees else 0.0
        found.append(
            tuple(
                Interval(float(m), float(m - h), float(m + h))
                if degrees
                else Interval(float(m), None, None)
                for m, h in zip(contrasts @ coefficients, half, strict=True)
            )
        )
    return MainEffects(tuple(found), tuple(freedom), crossed)


def _design(factors: Int, counts: list[Int]) -> Values:
    """(C, 1 + sum of levels - 1): ones, and for every setting an indicator of each level but the first."""
    columns = [np.ones(len(factors))]
    for factor, count in zip(factors.T, counts, strict=True):
        columns += [(factor == number).astype(np.float64) for number in range(1, len(count))]
    return np.column_stack(columns)


def _contrasts(counts: list[Int], num_configurations: int) -> list[Values]:
    """For every setting (levels, coefficients): each level minus the mean over all configurations."""
    width = 1 + sum(len(count) - 1 for count in counts)
    found, start = [], 1
    for count in counts:
        own = np.eye(len(count)) - count / num_configurations
        contrasts = np.zeros((len(count), width))
        contrasts[:, start : start + len(count) - 1] = own[:, 1:]
        found.append(contrasts)
        start += len(count) - 1
    return found


def _is_grid(factors: Int, counts: list[Int]) -> bool:
    """Whether every combination of levels is there, all equally often."""
    found = Counter(map(tuple, factors.tolist()))
    combinations = int(np.prod([len(count) for count in counts]))
    return len(found) == combinations and len(set(found.values())) == 1
