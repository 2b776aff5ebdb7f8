"""The figures of compare.html: accuracy against each cost with its front, effects, paired differences."""

from __future__ import annotations

import re
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from ssat_ray.comparison.words import IN_WORDS
from ssat_ray.report.drawing import (
    CHOSEN,
    INK,
    MUTED,
    STYLE,
    Float,
    chart,
    row_colour,
    spread,
    thin,
    to_svg,
)

Record = dict[str, Any]
AXES = {"time": "total time, s", "images": "training images", "memory": "peak memory, MiB"}
UNITS = {"time": 1.0, "images": 1.0, "memory": 2.0**20}
_FAINT = 0.35
_NAMED = 12
"""Most names beside a chart; the front's and the recommended outcome's are there in any case."""


def front(content: Record, by: str) -> Markup | None:
    """Accuracy with intervals against one cost; the front as a line, the recommended outcome in a ring."""
    shown = [entry for entry in content["outcomes"] if entry[by] is not None]
    if not shown:
        return None
    attack, chosen = content["attack"], content["recommended"]["name"]
    with matplotlib.rc_context(STYLE):
        figure, axes = chart((5.4, 3.7))
        costs = np.array([entry[by] / UNITS[by] for entry in shown])
        logarithmic = bool(costs.min() > 0 and costs.max() > 10 * costs.min())
        places = _side_by_side(costs, logarithmic)
        means = np.array([entry[attack]["mean"] for entry in shown])
        on_front = np.array([by in entry["fronts"] for entry in shown])
        named = []
        for entry, place, mean, best in zip(shown, places, means, on_front, strict=True):
            important = bool(best) or entry["name"] == chosen
            colour, alpha = row_colour(entry["row"]), 1.0 if important else _FAINT
            if entry[attack]["low"] is not None:
                bounds = [entry[attack]["low"], entry[attack]["high"]]
                axes.plot([place, place], bounds, color=colour, linewidth=1.1, alpha=alpha)
            marker = "o" if entry["candidate"] else "s"
            axes.plot([place], [mean], marker, color=colour, markersize=5.5, alpha=alpha)
            if entry["name"] == chosen:
                ring: dict[str, Any] = {"markerfacecolor": "none", "markeredgecolor": CHOSEN}
                axes.plot([place], [mean], "o", markersize=13, markeredgewidth=1.8, **ring)
            if important or len(shown) <= _NAMED:
                named.append((entry["name"], row_colour(entry["row"]), float(place), float(mean)))
        order = np.lexsort((-means[on_front], costs[on_front]))
        line: dict[str, Any] = {"color": MUTED, "linewidth": 1.0, "drawstyle": "steps-post"}
        axes.plot(costs[on_front][order], means[on_front][order], zorder=0.5, **line)
        _scale(axes, costs, logarithmic)
        axes.margins(x=0.08, y=0.06)
        thin(axes, AXES[by], f"{content['attack_name']} accuracy, %")
        _names(axes, named)
        alt = (
            f"{content['attack_name']} accuracy against {IN_WORDS[by]}, the Pareto front as a line"
        )
        return to_svg(figure, f"front-{by}", alt)


def _side_by_side(costs: Float, logarithmic: bool) -> Float:
    """Where to draw costs that are nearly equal, so that intervals stay visible: within 1.5 % of the axis."""
    scale = np.log(costs) if logarithmic else costs
    width = float(np.ptp(scale)) or 1.0
    moved = np.empty_like(scale)
    for i, place in enumerate(scale):
        same = np.flatnonzero(np.abs(scale - place) < 0.008 * width)
        step = min(0.016, 0.03 / len(same)) * width
        moved[i] = place + step * (np.searchsorted(same, i) - (len(same) - 1) / 2)
    return np.exp(moved) if logarithmic else moved


def _scale(axes: Axes, costs: Float, logarithmic: bool) -> None:
    """Few ticks, whole numbers on them."""
    if logarithmic:
        axes.set_xscale("log")
        ticks: list[float] = []
        for cost in sorted(costs.tolist()):
            if not ticks or np.log(cost / ticks[-1]) > 0.19 * np.log(costs.max() / costs.min()):
                ticks.append(cost)
        axes.set_xticks(ticks, minor=False)
        axes.set_xticks([], minor=True)
    elif np.ptp(costs) < 0.01 * costs.max():
        axes.set_xticks([float(costs.mean())])
    else:
        axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter(
        lambda value, _: (f"{value:,.0f}" if abs(value) >= 10 else f"{value:.3g}").replace(
            ",", "\N{NARROW NO-BREAK SPACE}"
        )
    )


def _names(axes: Axes, points: list[tuple[str, str, float, float]]) -> None:
    """Names in the right margin with a thin line to each point, never overlapping."""
    low, high = axes.get_ylim()
    heights = spread([(y - low) / (high - low) for *_, y in points], 0.07)
    for (name, colour, x, y), height in zip(points, heights, strict=True):
        axes.annotate(
            name,
            xy=(x, y),
            xytext=(1.04, height),
            textcoords="axes fraction",
            va="center",
            color=colour,
            fontsize=8.5,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.5},
        )


def effect(setting: Record, number: int) -> Markup | None:
    """The effect of each value of one setting, one below the other, in points against the average configuration."""
    if not setting["separable"]:
        return None
    levels = setting["levels"]
    with matplotlib.rc_context(STYLE):
        figure, axes = chart((4.6, 0.9 + 0.3 * len(levels)))
        axes.axvline(0, color=INK, linewidth=0.8)
        for place, level in enumerate(reversed(levels)):
            found = level["effect"]
            if found["low"] is not None:
                bounds = [found["low"], found["high"]]
                axes.plot(bounds, [place, place], color=CHOSEN, linewidth=1.6)
            axes.plot([found["mean"]], [place], "o", color=CHOSEN, markersize=5)
        thin(axes, "points of accuracy against the average configuration", "")
        _lines(axes, [level["value"] for level in levels])
        name = re.sub(r"\W+", "-", setting["setting"])
        alt = f"Effect of {setting['setting']} on robust accuracy, by value"
        return to_svg(figure, f"effect-{number}-{name}", alt)


def forest(content: Record, against: str) -> Markup | None:
    """Paired differences of every outcome to the row `against` of the same run, with their intervals."""
    shown = [entry for entry in content["outcomes"] if against in entry["differences"]]
    if not shown:
        return None
    with matplotlib.rc_context(STYLE):
        figure, axes = chart((6.4, 0.9 + 0.27 * len(shown)))
        axes.axvline(0, color=INK, linewidth=0.9)
        for place, entry in enumerate(reversed(shown)):
            difference, colour = entry["differences"][against], row_colour(entry["row"])
            if difference["low"] is not None:
                bounds = [difference["low"], difference["high"]]
                axes.plot(bounds, [place, place], color=colour, linewidth=1.8)
            marker = "o" if entry["candidate"] else "s"
            axes.plot([difference["mean"]], [place], marker, color=colour, markersize=5.5)
        thin(axes, f"points of {content['attack_name']} accuracy against {against}", "")
        _lines(axes, [entry["name"] for entry in shown])
        return to_svg(figure, f"forest-{against}", f"Differences to {against} by outcome")


def _lines(axes: Axes, names: list[str]) -> None:
    """A name to the left of every line, the first on top."""
    axes.grid(visible=False, axis="y")
    axes.set_yticks(range(len(names)), names[::-1])
    axes.tick_params(axis="y", length=0, labelsize=8.5, labelcolor=INK)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.spines["left"].set_visible(False)
