"""Draw the report's figures as small inline SVG charts.

Points by the thousand are rasterised inside their SVG; they use fixed colours that stand out on
both backgrounds.
"""

import re
from dataclasses import dataclass, field
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes

from ssat_ray.config import ROWS
from ssat_ray.report.drawing import (
    CHOSEN,
    INK,
    PAPER,
    POOL,
    REAL,
    STYLE,
    Float,
    Int,
    UInt8,
    chart,
    row_colour,
    spread,
    thin,
    to_svg,
)

BOUNDARY, REMAINDER = 1, 2
"""Codes in `FigureData.reasons`; 0 is a pool image that was not selected."""

_RASTER_COLOURS = {0: "#8b929b", BOUNDARY: "#e8590c", REMAINDER: "#2f7fd1"}
_MARKERS = dict(zip(ROWS, "XosD^vP<dh*", strict=True))


@dataclass(frozen=True, eq=False)
class GuidedData:
    """What the figures of a guided row need.

    Attributes:
        before, after: (n, H, W, C) uint8, images of one noise before and after guidance.
        scores: for `guide` and `judge` the scores of the base model's images and of the guided ones.
    """

    before: UInt8
    after: UInt8
    scores: dict[str, tuple[Float, Float]]


@dataclass(frozen=True, eq=False)
class FigureData:
    """What the figures need: N pool images and M real validation images.

    Attributes:
        images: (N, H, W, C) uint8, the pool.
        labels: (N,) int, the class that each pool image was generated for.
        scores: for each scored method (N,) float, lower = nearer the boundary.
        reasons: for each method (N,) int8: 0 not selected, 1 boundary, 2 random remainder.
        embeddings: (N, D) float, of the intermediate model.
        top_classes, top_probabilities: (N, 2), its two most probable classes, best first.
        real_images, real_labels, real_embeddings, real_scores: the same for real images (M).
        neighbour_generated, neighbour_real: (N,), (M,) Euclidean distance, pixels in [0, 1], to
            the nearest labelled training image.
        show_method: whose selection the projection and the grids show; None: no scored method.
        guided: by guided row.
    """

    images: UInt8
    labels: Int
    scores: dict[str, Float]
    reasons: dict[str, npt.NDArray[np.int8]]
    embeddings: Float
    top_classes: Int
    top_probabilities: Float
    real_images: UInt8
    real_labels: Int
    real_embeddings: Float
    real_scores: dict[str, Float]
    neighbour_generated: Float
    neighbour_real: Float
    show_method: str | None
    guided: dict[str, GuidedData] = field(default_factory=dict)


def _label_right(axes: Axes, points: list[tuple[str, float, float]]) -> None:
    """Name every point in the right margin, with a thin line to it, names never overlapping."""
    low, high = axes.get_ylim()
    heights = spread([(y - low) / (high - low) for _, _, y in points], 0.085)
    for (row, x, y), height in zip(points, heights, strict=True):
        axes.annotate(
            row,
            xy=(x, y),
            xytext=(1.05, height),
            textcoords="axes fraction",
            va="center",
            color=row_colour(row),
            fontsize=9.5,
            fontweight="bold",
            arrowprops={
                "arrowstyle": "-",
                "color": row_colour(row),
                "linewidth": 0.6,
                "alpha": 0.6,
            },
        )


def accuracy_against(rows: list[dict[str, Any]], values: dict[str, float], label: str) -> Markup:
    """Robust accuracy (PGD, percent) with intervals against one cost, a labelled point a row."""
    with matplotlib.rc_context(STYLE):
        figure, axes = chart((5.0, 3.5))
        costs = np.array([values[row["row"]] for row in rows], dtype=float)
        logarithmic = bool(costs.min() > 0 and costs.max() > 10 * costs.min())
        scale = np.log(costs) if logarithmic else costs
        step = 0.022 * (np.ptp(scale) or 1.0)
        points = []
        for i, row in enumerate(rows):
            # Rows that cost the same stand side by side, so that their intervals stay visible.
            same = np.flatnonzero(np.abs(scale - scale[i]) < 0.5 * step)
            x = scale[i] + step * (np.searchsorted(same, i) - (len(same) - 1) / 2)
            x = float(np.exp(x)) if logarithmic else float(x)
            pgd = row["accuracy"]["pgd"]
            colour = row_colour(row["row"])
            axes.plot([x, x], [pgd["low"], pgd["high"]], color=colour, linewidth=1.3)
            marker = _MARKERS.get(row["row"], "o")
            axes.plot([x], [pgd["mean"]], marker, color=colour, markersize=6)
            points.append((row["row"], x, pgd["mean"]))
        if logarithmic:
            axes.set_xscale("log")
            ticks: list[float] = []
            for cost in sorted(set(costs.tolist())):
                if not ticks or np.log(cost / ticks[-1]) > 0.15 * np.ptp(scale):
                    ticks.append(cost)
            axes.set_xticks(ticks, minor=False)
            axes.set_xticks([], minor=True)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}".replace(",", "\u202f"))
        axes.margins(x=0.06)
        thin(axes, label, f"{rows[0]['accuracy']['pgd']['name']} accuracy, %")
        _label_right(axes, points)
        name = re.sub(r"\W+", "-", label)
        return to_svg(figure, f"against-{name}", f"Robust accuracy of each row against {label}")


def mean_history(history: list[list[list[float]]]) -> tuple[Float, Float]:
    """Steps that every seed has, and the mean validation accuracy (percent) at each of them."""
    by_seed = [{point[0]: point[2] for point in seed} for seed in history if seed]
    steps = sorted(set.intersection(*(set(seed) for seed in by_seed))) if by_seed else []
    means = [float(np.mean([seed[step] for seed in by_seed])) for step in steps]
    return np.asarray(steps, dtype=float), np.asarray(means, dtype=float)


def validation_curves(rows: list[dict[str, Any]]) -> Markup | None:
    """Validation accuracy under PGD over training steps: mean over seeds bold, each seed thin."""
    with matplotlib.rc_context(STYLE):
        figure, axes = chart((5.0, 3.4))
        ends = []
        for row in rows:
            steps, means = mean_history(row["history"])
            if not len(steps):
                continue
            colour = row_colour(row["row"])
            axes.plot(steps, means, color=colour, linewidth=1.8)
            axes.plot(steps[-1:], means[-1:], _MARKERS.get(row["row"], "o"), color=colour)
            for seed in row["history"] if len(row["history"]) > 1 else []:
                x, y = [p[0] for p in seed], [p[2] for p in seed]
                axes.plot(x, y, color=colour, linewidth=0.5, alpha=0.3)
            ends.append((row["row"], float(steps[-1]), float(means[-1])))
        if not ends:
            return None
        # The rows differ by points at the end, the climb spans tens of them.
        every = np.concatenate([mean_history(row["history"])[1] for row in rows])
        low, high = float(np.quantile(every, 0.2)), float(every.max())
        axes.set_ylim(low - 0.05 * (high - low) - 0.1, high + 0.1 * (high - low) + 0.1)
        thin(axes, "training step", "validation accuracy under PGD, %")
        _label_right(axes, ends)
        return to_svg(figure, "curves", "Validation accuracy under PGD over training steps")


def forest(rows: list[dict[str, Any]], against: str) -> Markup | None:
    """Paired differences of robust accuracy to the row `against`, with their intervals."""
    shown = [row for row in rows if against in row["differences"]]
    if not shown:
        return None
    with matplotlib.rc_context(STYLE):
        figure, axes = chart((5.0, 0.9 + 0.34 * len(shown)))
        for y, row in enumerate(reversed(shown)):
            difference, colour = row["differences"][against], row_colour(row["row"])
            axes.plot([difference["low"], difference["high"]], [y, y], color=colour, linewidth=2)
            marker = _MARKERS.get(row["row"], "o")
            axes.plot([difference["mean"]], [y], marker, color=colour, markersize=7)
        axes.axvline(0, color=INK, linewidth=0.9)
        thin(axes, f"points of robust accuracy against {against}", "")
        axes.grid(visible=False, axis="y")
        axes.set_yticks(range(len(shown)), [row["row"] for row in reversed(shown)])
        axes.tick_params(axis="y", length=0, labelsize=10, labelcolor=INK)
        axes.set_ylim(-0.6, len(shown) - 0.4)
        axes.spines["left"].set_visible(False)
        return to_svg(figure, "forest", f"Differences of robust accuracy to {against} by row")


def _bins(*samples: Float) -> Float:
    """40 equal bins that hold the middle 99 % of every sample."""
    ranges = [np.quantile(sample[np.isfinite(sample)], [0.005, 0.995]) for sample in samples]
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    return np.linspace(low, high if high > low else low + 1.0, 41)


def _counts(sample: Float, bins: Float, density: bool = False) -> Float:
    """Counts with what lies outside put into the end bins, so that nothing is hidden."""
    sample = sample[np.isfinite(sample)]
    counts = np.histogram(np.clip(sample, bins[0], bins[-1]), bins)[0].astype(float)
    return counts / (max(len(sample), 1) * (bins[1] - bins[0])) if density else counts


def score_histogram(data: FigureData, method: str) -> Markup:
    """A method's scores over the pool, its boundary part, and the cut between them."""
    scores = np.asarray(data.scores[method], dtype=float)
    chosen = scores[data.reasons[method] == BOUNDARY]
    with matplotlib.rc_context(STYLE):
        figure, axes = chart((4.2, 2.6))
        bins = _bins(scores)
        axes.stairs(_counts(scores, bins), bins, fill=True, color=POOL, alpha=0.55)
        if len(chosen):
            axes.stairs(_counts(chosen, bins), bins, fill=True, color=CHOSEN)
            cut = float(np.clip(chosen.max(), bins[0], bins[-1]))
            axes.axvline(cut, color=INK, linewidth=1.2)
            left = cut > 0.75 * bins[-1] + 0.25 * bins[0]
            axes.annotate(
                f"cut {chosen.max():.3g}".replace("-", "\N{MINUS SIGN}"),
                (cut, 0.95),
                xycoords=("data", "axes fraction"),
                xytext=(-5 if left else 5, 0),
                textcoords="offset points",
                ha="right" if left else "left",
            )
        thin(axes, f"{method} score (lower = nearer the boundary)", "pool images")
        return to_svg(figure, f"scores-{method}", f"Histogram of {method} scores with the cut")


def two_densities(
    filled: Float, outlined: Float, label: str, name: str, of: str = "generated and real images"
) -> Markup:
    """Two histograms of density over the same bins, one filled, the other an outline."""
    with matplotlib.rc_context(STYLE):
        figure, axes = chart((5.0, 2.9))
        bins = _bins(filled, outlined)
        axes.stairs(_counts(filled, bins, True), bins, fill=True, color=POOL, alpha=0.55)
        axes.stairs(_counts(outlined, bins, True), bins, color=REAL, linewidth=1.8)
        thin(axes, label, "density")
        return to_svg(figure, name, f"Density of {label}, {of}")


def principal_plane(embeddings: Float) -> tuple[Float, Float]:
    """(N, 2) coordinates on the two main axes, and the (2,) shares of variance they carry."""
    centred = np.asarray(embeddings, dtype=float) - np.mean(embeddings, axis=0)
    _, singular, axes = np.linalg.svd(centred, full_matrices=False)
    shares = singular**2 / max(float((singular**2).sum()), 1e-30)
    return centred @ axes[:2].T, shares[:2]


def projection(data: FigureData, method: str) -> tuple[Markup, Float]:
    """The pool on its two main axes, coloured by why an image was chosen; shares of variance."""
    points, shares = principal_plane(data.embeddings)
    reasons = data.reasons[method]
    with matplotlib.rc_context(STYLE):
        figure, axes = chart((5.0, 4.0))
        for reason, alpha in ((0, 0.3), (REMAINDER, 0.75), (BOUNDARY, 0.75)):
            chosen = points[reasons == reason]
            colour = _RASTER_COLOURS[reason]
            style: dict[str, Any] = {"color": colour, "alpha": alpha, "rasterized": True}
            axes.scatter(chosen[:, 0], chosen[:, 1], s=5 if reason else 3, linewidths=0, **style)
        for label in np.unique(data.labels):
            x, y = np.median(points[data.labels == label], axis=0)
            box: dict[str, Any] = {"facecolor": PAPER, "edgecolor": "none", "pad": 1.5}
            axes.text(x, y, str(label), ha="center", va="center", weight="bold", bbox=box)
        axes.set_xticks([])
        axes.set_yticks([])
        thin(
            axes,
            f"first axis, {100 * shares[0]:.0f} % of variance",
            f"second, {100 * shares[1]:.0f} %",
        )
        svg = to_svg(figure, "projection", f"Embeddings of the pool; {method} selection coloured")
        return svg, shares
