"""Guidance over its weight, in fine-tuning and at sampling: what guide and judge say of the images, as tables (also by seed)
and figure."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from ssat_ray import pipeline
from ssat_ray.config import GUIDED, Config
from ssat_ray.diffusion.quality import NEAR
from ssat_ray.loading import load_config
from ssat_ray.plan import Plan, build_plan
from ssat_ray.stages.base import StageContext
from ssat_ray.stages.quality import QUALITY
from ssat_ray.store import Job, Store
from ssat_ray.view import follower

PRESET = "digits"
WEIGHTS = (0.0, 0.05, 0.1, 0.18, 0.25, 0.4, 0.7)
SAMPLING = (1.0, 3.0, 6.0, 10.0)
KEYS = {"fine-tuning": "finetune.weight", "sampling": "generate.guidance"}
"""Where the guidance is -> the setting that is its weight."""
OWN = (*KEYS.values(), "finetune.pcg_weight", "rows", "seeds")
"""Settings that are not among the overrides."""
SEEDS = (0, 1, 2)
JUDGES = ("judge", "guide")
LEAST_NEAR, LEAST_AGREEMENT, LEAST_COVERAGE = 2 * NEAR, 0.95, 0.85
"""What the images of a seed should reach: twice the base images' share near the boundary, this label agreement, and
this part of the base images' coverage."""


@dataclass(frozen=True)
class Point:
    """What one classifier says of one row's images at one weight: an array over `seeds` each.

    Attributes:
        how: `fine-tuning` or `sampling`.
        judge: `judge` or `guide`, the classifier.
        weight: lambda, or that of `generate.guidance`.
        near: share below the base images' 20 % quantile of the score.
        median_ratio: median score over the base images'.
        agreement, base_agreement: share whose most probable class is the label, and the base images'.
        coverage, base_coverage: of the real images, and the base images'.
        confidence: mean, less the base images'.
    """

    row: str
    how: str
    judge: str
    weight: float
    seeds: tuple[int, ...]
    near: np.ndarray
    median_ratio: np.ndarray
    agreement: np.ndarray
    base_agreement: np.ndarray
    coverage: np.ndarray
    base_coverage: np.ndarray
    confidence: np.ndarray

    @classmethod
    def of(
        cls, row: str, how: str, judge: str, weight: float, found: dict[int, dict[str, Any]]
    ) -> Point:
        """From the quality report of each seed."""
        seen = [quality[judge] for quality in found.values()]
        return cls(
            row,
            how,
            judge,
            weight,
            tuple(found),
            np.array([s["near"] for s in seen]),
            np.array([s["median_ratio"] for s in seen]),
            np.array([s["guided"]["agreement"] for s in seen]),
            np.array([s["base"]["agreement"] for s in seen]),
            np.array([s["guided"]["coverage"] for s in seen]),
            np.array([s["base"]["coverage"] for s in seen]),
            np.array([s["guided"]["confidence"] - s["base"]["confidence"] for s in seen]),
        )

    @property
    def coverage_ratio(self) -> np.ndarray:
        """Coverage over the base images', by seed."""
        return self.coverage / self.base_coverage

    @property
    def reaching(self) -> list[int]:
        """The seeds whose images reach all three bars."""
        found = self.near >= LEAST_NEAR
        found &= (self.agreement >= LEAST_AGREEMENT) & (self.coverage_ratio >= LEAST_COVERAGE)
        return [seed for seed, reached in zip(self.seeds, found, strict=True) if reached]


def run(
    weights: tuple[float, ...] = WEIGHTS,
    sampling: tuple[float, ...] = SAMPLING,
    seeds: tuple[int, ...] = SEEDS,
    rows: tuple[str, ...] = GUIDED,
    overrides: tuple[str, ...] = (),
    folder: Path | None = None,
) -> list[Point]:
    """Fine-tune or steer, sample and judge for every weight, row and seed, in one Ray session.

    Args:
        weights: lambdas of fine-tuning. sampling: weights of guidance at sampling.
        overrides: further settings over the preset `digits`, none of `OWN`.
        folder: of the store, which is kept; a scratch folder if None.

    Raises:
        UserError: a setting is wrong, before anything is trained.
    """
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="ssat-bench-") as scratch:
            return run(weights, sampling, seeds, rows, overrides, Path(scratch))
    store = Store(folder / "store")
    cases = [("fine-tuning", weight) for weight in weights]
    cases += [("sampling", weight) for weight in sampling]
    settings = [*overrides, f"rows=[{', '.join(rows)}]", f"seeds={list(seeds)}"]
    settings += [*(f"{key}=0" for key in KEYS.values()), "finetune.pcg_weight=null"]
    reports: dict[tuple[str, str, float], dict[int, Job]] = {}
    wanted: dict[str, Job] = {}
    plans: list[tuple[Config, Plan]] = []
    for how, weight in cases:
        config = load_config(PRESET, [*settings, f"{KEYS[how]}={weight}"])
        plans.append((config, build_plan(config)))
        for row in rows:
            jobs = {seed: plans[-1][1].jobs[row, seed, "quality"] for seed in seeds}
            reports[row, how, weight] = jobs
            for job in jobs.values():
                wanted |= {j.digest: j for j in job.closure()}
    _execute(list(wanted.values()), plans, store)
    found = {
        key: {s: json.loads((store.folder(job) / QUALITY).read_text()) for s, job in of.items()}
        for key, of in reports.items()
    }
    return [
        Point.of(row, how, judge, weight, found[row, how, weight])
        for row in rows
        for judge in JUDGES
        for how, weight in cases
    ]


def _execute(jobs: list[Job], plans: list[tuple[Config, Plan]], store: Store) -> None:
    """Compute what is missing, shown on stderr, once every configuration fits the data."""
    config, _ = plans[0]
    context = StageContext(store, config.runtime)
    missing = [job for job in jobs if store.record(job) is None]
    watcher = follower(config, sys.stderr, "bench guidance", time.time())
    try:
        watcher.planned(jobs, missing)
        pipeline.examine(missing, plans, context, watcher)
        if missing:
            with pipeline.session(config, watcher):
                pipeline.execute(missing, context, watcher)
    finally:
        watcher.close()


def table(points: list[Point]) -> str:
    """A Markdown line a point: means with 95 % intervals over seeds (`interval`); in brackets, the base images' mean."""
    heads = [f"near the boundary % [{100 * NEAR:g}]"]
    heads += ["median score / base", "label agreement % [base]", "coverage [base]"]
    heads += ["coverage / base", "confidence - base"]
    cells = [
        [
            _spread(100 * p.near, 1),
            _spread(p.median_ratio, 2),
            f"{_spread(100 * p.agreement, 1)} [{100 * p.base_agreement.mean():.1f}]",
            f"{_spread(p.coverage, 2)} [{p.base_coverage.mean():.2f}]",
            _spread(p.coverage_ratio, 2),
            _spread(p.confidence, 3),
        ]
        for p in points
    ]
    return _markdown(points, heads, cells)


def _markdown(points: list[Point], heads: list[str], cells: list[list[str]]) -> str:
    """A Markdown table with a line a point, which begins with what the point is of."""
    heads = ["row", "guided in", "seen by", "weight", *heads]
    lines = [f"| {' | '.join(heads)} |", "|---|---|---|" + "---:|" * (len(heads) - 3)]
    for p, own in zip(points, cells, strict=True):
        lines.append(f"| {' | '.join([f'`{p.row}`', p.how, p.judge, f'{p.weight:g}', *own])} |")
    return "\n".join(lines)


def table_by_seed(points: list[Point]) -> str:
    """A Markdown line a point: the value of each seed, in their order, and the seeds that reach all three bars."""
    heads = [f"near the boundary %, from {100 * LEAST_NEAR:g}"]
    heads += ["median score / base", f"label agreement %, from {100 * LEAST_AGREEMENT:g}"]
    heads += [f"coverage / base, from {LEAST_COVERAGE:g}", "confidence - base"]
    heads += ["seeds that reach all"]
    cells = [
        [
            _each(100 * p.near, 1),
            _each(p.median_ratio, 2),
            _each(100 * p.agreement, 1),
            _each(p.coverage_ratio, 3),
            _each(p.confidence, 4),
            ", ".join(map(str, p.reaching)) or "none",
        ]
        for p in points
    ]
    return _markdown(points, heads, cells)


def interval(values: np.ndarray) -> float:
    """Half the width of Student's 95 % interval of the mean of (seeds,) values; nan of one value."""
    if len(values) < 2:
        return float("nan")
    return float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))


def _spread(values: np.ndarray, digits: int) -> str:
    mean = f"{values.mean():.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {interval(values):.{digits}f}"


def _each(values: np.ndarray, digits: int) -> str:
    return ", ".join(f"{value:.{digits}f}" for value in values)


PANELS = {
    "near": ("near the boundary, %", 100),
    "median_ratio": ("median score / base", 1),
    "agreement": ("label agreement, %", 100),
    "coverage": ("coverage", 1),
}
"""What the curves show: attribute of a point -> title and scale."""


def draw(points: list[Point], path: Path) -> None:
    """The curves over the weight as a PNG, a line of panels for fine-tuning and one for sampling.

    The judge's are solid, the guide's dotted; grey: the base images, by each of them.
    """
    colours: dict[str, str] = dict(zip(GUIDED, ("#6741d9", "#d9480f", "#b07d00"), strict=True))
    lines = [how for how in KEYS if any(p.how == how for p in points)]
    with matplotlib.rc_context({"font.size": 9}):
        figure = Figure(figsize=(12, 3.2 * len(lines)), layout="constrained")
        grid = figure.subplots(len(lines), len(PANELS), squeeze=False)
        for axes, how in zip(grid, lines, strict=True):
            shown = [p for p in points if p.how == how]
            for axis, (name, (label, scale)) in zip(axes, PANELS.items(), strict=True):
                for row in dict.fromkeys(p.row for p in shown):
                    for judge in JUDGES:
                        curve = [p for p in shown if (p.row, p.judge) == (row, judge)]
                        _curve(axis, curve, name, scale, colours[row])
                axis.set_xlabel("λ" if how == "fine-tuning" else "weight at sampling")
                axis.set_title(label, fontsize=9)
                axis.grid(linewidth=0.4)
        grid[0, 0].legend(fontsize=7)
        figure.savefig(path, dpi=150)


def _curve(axis: Axes, curve: list[Point], name: str, scale: float, colour: str) -> None:
    """A row's values by one classifier over the weight, the judge's with their intervals."""
    is_judge = curve[0].judge == JUDGES[0]
    style = "-" if is_judge else ":"
    x = [p.weight for p in curve]
    y = np.array([scale * getattr(p, name) for p in curve])
    axis.axhline(scale * _base(curve[0], name), color="0.6", linestyle=style, lw=1)
    label = f"{curve[0].row}, {curve[0].judge}"
    axis.plot(x, y.mean(1), style, color=colour, label=label)
    if is_judge:
        half = np.array([interval(values) for values in y])
        axis.fill_between(x, y.mean(1) - half, y.mean(1) + half, color=colour, alpha=0.15, lw=0)


def _base(point: Point, name: str) -> float:
    """The base images' mean of what a panel shows; the first two are relative to them."""
    if name == "near":
        return NEAR
    return 1.0 if name == "median_ratio" else float(getattr(point, f"base_{name}").mean())
