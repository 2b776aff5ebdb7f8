"""Draw the figures of a selection's report: memory over time, clusters, scores with the cut."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ssat_ray.report.drawing import (
    CHOSEN,
    INK,
    MUTED,
    POOL,
    STAGE_COLOURS,
    STYLE,
    Float,
    chart,
    row_colour,
    spread,
    thin,
    to_svg,
)
from ssat_ray.report.words import count, duration, number, percent, size

_MAX_POINTS = 600
"""More samples than a screen has columns would only make the page larger."""
_METHOD_ROWS = {"kmeans": "lcs-km", "gmm": "lcs-gmm"}
_AS_BARS = 40


# -- memory -------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Timeline:
    """All samples of a run's sessions on one time axis, without the pauses between sessions.

    Attributes:
        seconds: (S,) float, running time at each sample.
        used: (S,) float, bytes.
        session: (S,) int, which session a sample belongs to, from 0 among those with samples.
        bands: (stage, first second, last second), in order; time without a stage has no band.
        pauses: for each but the first of these sessions: where it starts (seconds), and how long
            nothing ran before it (seconds; None if the start times do not tell).
    """

    seconds: Float
    used: Float
    session: Float
    bands: list[tuple[str, float, float]]
    pauses: list[tuple[float, float | None]]


def timeline(sessions: Sequence[dict[str, Any]]) -> Timeline | None:
    """Put sessions one after another; None without any sample."""
    shown = [session for session in sessions if session["samples"]]
    if not shown:
        return None
    seconds, used, owner = [], [], []
    bands: list[tuple[str, float, float]] = []
    pauses, offset = [], 0.0
    for i, session in enumerate(shown):
        if i:
            pauses.append((offset, _pause(shown[i - 1], session)))
        before = offset
        for moment, memory, stage in session["samples"]:
            now = offset + moment
            if bands and bands[-1][0] == stage and bands[-1][2] == before > offset:
                bands[-1] = (stage, bands[-1][1], now)
            elif stage:
                bands.append((stage, before, now))
            before = now
            seconds.append(now)
            used.append(memory)
            owner.append(i)
        offset = before
    return Timeline(
        np.asarray(seconds, float), np.asarray(used, float), np.asarray(owner), bands, pauses
    )


def _pause(before: dict[str, Any], after: dict[str, Any]) -> float | None:
    try:
        started = [datetime.fromisoformat(session["started"]) for session in (before, after)]
        return max(0.0, (started[1] - started[0]).total_seconds() - before["samples"][-1][0])
    except (TypeError, ValueError):
        return None


def peaks(seconds: Float, used: Float, num: int = _MAX_POINTS) -> tuple[Float, Float]:
    """At most `num` points: the highest sample of every run of neighbours, so that no peak is lost."""
    if len(seconds) <= num:
        return seconds, used
    runs = np.array_split(np.arange(len(seconds)), num)
    kept = np.array([run[np.argmax(used[run])] for run in runs])
    return seconds[kept], used[kept]


def memory_over_time(
    line: Timeline, memory: dict[str, Any] | None, colours: dict[str, int], wide: bool
) -> Markup:
    """Memory of the whole session over running time, stages as bands with their names above.

    Args:
        line: the samples.
        memory: medians of the second and the last quarter in bytes, or None: too few samples.
        colours: for each stage the number of its colour, --s0 to --s11.
        wide: for a wide screen; otherwise for a phone.
    """
    width = 10.6 if wide else 5.0
    top = float(line.used.max())
    unit, unit_bytes = ("GiB", 2**30) if top >= 2**29 else ("MiB", 2**20)
    time_unit, per_unit = _time_unit(float(line.seconds[-1]))
    with matplotlib.rc_context(STYLE):
        figure, axes = chart((width, 3.9))
        _bands(axes, line, colours, per_unit, gap=13.0 / (72 * (width - 0.7)))
        for i in np.unique(line.session):
            mine = line.session == i
            x, y = peaks(line.seconds[mine] / per_unit, line.used[mine] / unit_bytes)
            axes.plot(x, y, color=INK, linewidth=1.4, marker="o" if len(x) == 1 else "")
        for start, pause in line.pauses:
            axes.axvline(start / per_unit, color=INK, linewidth=1.0, linestyle=(0, (3, 2)))
            text = "new session" if pause is None else f"pause of {duration(pause)}"
            style: dict[str, Any] = {"rotation": 90, "fontsize": 8.5, "color": MUTED}
            axes.annotate(
                text,
                (start / per_unit, 0.03),
                xycoords=("data", "axes fraction"),
                xytext=(-3, 0),
                textcoords="offset points",
                ha="right",
                va="bottom",
                **style,
            )
        for samples, level in _quarters(line, memory):
            ends = line.seconds[samples[[0, -1]]] / per_unit
            axes.plot(ends, [level / unit_bytes] * 2, color=CHOSEN, linewidth=2.2)
        axes.set_ylim(0, 1.08 * max(top, 1.0) / unit_bytes)
        axes.set_xlim(0, float(line.seconds[-1]) / per_unit or 1.0)
        thin(axes, f"running time, {time_unit}", f"memory, {unit}")
        name = "memory-wide" if wide else "memory-narrow"
        stages = ", ".join(dict.fromkeys(stage for stage, *_ in line.bands))
        alt = (
            f"Memory over {duration(float(line.seconds[-1]))} of running time, at most {size(top)}"
        )
        return to_svg(figure, name, f"{alt}; stages: {stages or 'not recorded'}")


def _time_unit(seconds: float) -> tuple[str, float]:
    if seconds < 300:
        return "s", 1.0
    return ("min", 60.0) if seconds < 4 * 3600 else ("h", 3600.0)


def _bands(
    axes: Axes, line: Timeline, colours: dict[str, int], per_unit: float, gap: float
) -> None:
    """Coloured bands, and above the chart their names, apart from one another, each with a line to its band."""
    end = float(line.seconds[-1]) or 1.0
    for stage, first, last in line.bands:
        colour = STAGE_COLOURS[colours[stage]]
        axes.axvspan(first / per_unit, last / per_unit, color=colour, alpha=0.3, linewidth=0)
    longest = sorted(line.bands, key=lambda band: band[1] - band[2])[: int(0.9 / gap)]
    named = [band for band in line.bands if band in longest]
    middles = [(first + last) / 2 / end for _, first, last in named]
    for (stage, *_), middle, place in zip(named, middles, spread(middles, gap), strict=True):
        axes.annotate(
            stage,
            xy=(middle, 1.0),
            xytext=(place, 1.07),
            xycoords="axes fraction",
            textcoords="axes fraction",
            rotation=90,
            ha="center",
            va="bottom",
            fontsize=9,
            arrowprops={
                "arrowstyle": "-",
                "color": MUTED,
                "linewidth": 0.6,
                "shrinkA": 0,
                "shrinkB": 0,
            },
        )


def _quarters(line: Timeline, memory: dict[str, Any] | None) -> list[tuple[Any, float]]:
    """Indices of the samples in the second and the last quarter, and their median (bytes)."""
    quarter = len(line.seconds) // 4
    if memory is None or memory["rise"] is None or not quarter:
        return []
    every = np.arange(len(line.seconds))
    return [
        (every[quarter : 2 * quarter], memory["second_quarter_bytes"]),
        (every[-quarter:], memory["last_quarter_bytes"]),
    ]


# -- clusters -----------------------------------------------------------------------------------------


def convergence(clusters: Sequence[dict[str, Any]], method: str, name: str) -> Markup | None:
    """Inertia or mean log-likelihood per iteration, a line a seed; None without two iterations."""
    shown = [c for c in clusters if c["method"] == method and len(c["history"]) > 1]
    if not shown:
        return None
    top = max(abs(value) for c in shown for value in c["history"])
    power = 3 * int(np.floor(np.log10(top) / 3)) if method == "kmeans" and top >= 1e4 else 0
    scale = f", × {count(10**power)}" if power else ""
    label = "inertia" + scale if method == "kmeans" else "log-likelihood per image, nats"
    with matplotlib.rc_context(STYLE):
        figure, axes = chart((5.0, 2.9))
        colour = row_colour(_METHOD_ROWS.get(method, ""))
        for i, cluster in enumerate(shown):
            y = np.asarray(cluster["history"], float) / 10**power
            x = np.arange(1, len(y) + 1)
            axes.plot(x, y, color=colour, linewidth=1.6, alpha=1 if i == 0 else 0.45)
            axes.plot(x[-1:], y[-1:], "o", color=colour, markersize=5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        thin(axes, "iteration", label)
        ends = ", ".join(f"seed {c['seed']} ends at {number(c['history'][-1])}" for c in shown)
        return to_svg(figure, name, f"{label} of {method} per iteration: {ends}")


def cluster_shares(cluster: dict[str, Any], name: str) -> Markup | None:
    """Shares of the images by cluster, largest first, against equal shares; None without any."""
    shares = 100 * np.sort(np.asarray(cluster["shares"], float))[::-1]
    if not len(shares):
        return None
    k = len(shares)
    with matplotlib.rc_context(STYLE):
        figure, axes = chart((5.0, 2.9))
        places = np.arange(1, k + 1)
        if k <= _AS_BARS:
            axes.bar(places, shares, width=0.8, color=POOL, alpha=0.8)
        else:
            axes.fill_between(places, shares, color=POOL, alpha=0.8, step="mid", linewidth=0)
        axes.axhline(100 / k, color=INK, linewidth=1.0, linestyle=(0, (3, 2)))
        axes.set_ylim(bottom=0)
        axes.set_xlim(0.4, k + 0.6)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        thin(axes, "cluster, largest first", "images, %")
        axes.grid(visible=False, axis="x")
        alt = f"Shares of {k} clusters, from {percent(shares[0] / 100)} down to {percent(shares[-1] / 100)}"
        return to_svg(figure, name, alt)


# -- scores -------------------------------------------------------------------------------------------


def score_histogram(score: dict[str, Any], name: str) -> Markup | None:
    """A score over the pool in equal bins, the part below the cut coloured; None without bins."""
    edges, shares = np.asarray(score["edges"], float), 100 * np.asarray(score["shares"], float)
    if not len(shares):
        return None
    with matplotlib.rc_context(STYLE):
        figure, axes = chart((5.0, 2.9))
        axes.stairs(shares, edges, fill=True, color=POOL, alpha=0.55)
        alt = f"Histogram of {score['row']} scores over the pool"
        if score["cut"] is not None:
            alt += f", cut at {number(score['cut'])}"
            _cut(axes, edges, shares, float(score["cut"]))
        thin(axes, f"{score['row']} score", "pool images, % in each bin")
        return to_svg(figure, name, alt)


def _cut(axes: Axes, edges: Float, shares: Float, value: float) -> None:
    """Colour what lies below the cut, and mark the cut; outside the bins it stands at their end."""
    place = float(np.clip(value, edges[0], edges[-1]))
    below = int(np.searchsorted(edges, place, side="left"))
    if below:
        part = np.append(edges[:below], place)
        axes.stairs(shares[:below], part, fill=True, color=CHOSEN)
    axes.axvline(place, color=INK, linewidth=1.2)
    left = place > 0.75 * edges[-1] + 0.25 * edges[0]
    axes.annotate(
        f"cut {number(value)}",
        (place, 0.95),
        xycoords=("data", "axes fraction"),
        xytext=(-5 if left else 5, 0),
        textcoords="offset points",
        ha="right" if left else "left",
    )
