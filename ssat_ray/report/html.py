"""Turn `results.json` and the arrays behind the figures into one self-contained report.html."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ssat_ray.report import figures as draw
from ssat_ray.report.figures import BOUNDARY, ROW_ORDER, FigureData

Row = dict[str, Any]

ABOUT = {
    "none": "the labelled images alone",
    "random": "a random part of the pool",
    "pcs": "least confident images",
    "lcs-km": "between two k-means clusters",
    "lcs-gmm": "between two Gaussian components",
    "gmm-ll": "lowest density first",
    "easy": "lcs-km reversed, a control",
    "full": "the whole pool",
}
SELECTORS = ("pcs", "lcs-km", "lcs-gmm", "gmm-ll", "easy")
STAGES = ("intermediate", "pretrain", "generate", "cluster", "score", "select", "train")
MEASURES = ("clean", "pgd", "apgd-ce", "autoattack")
_STAGE_FACTS = (
    "startup_seconds",
    "world_size",
    "backend",
    "worker_pids",
    "actor_pids",
    "blocks",
    "peak_pss_bytes",
    "bytes_written",
)
_GRID = 24
_PER_CLASS = 10


def signed(points: float) -> str:
    """Percentage points with a sign, one decimal: +1.2 or -0.3 with a true minus."""
    text = f"{points:+.1f}"
    return ("0.0" if float(text) == 0 else text).replace("-", "\N{MINUS SIGN}")


def duration(seconds: float | None) -> str:
    """Seconds as a person reads them: 0.42 s, 41 s, 3 min 20 s, 1 h 05 min."""
    if seconds is None:
        return "–"
    if seconds < 9.95:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(count: float | None) -> str:
    """Bytes in binary units, three significant digits."""
    if count is None:
        return "–"
    power = min(4, int(math.log(count, 1024) + 1e-9)) if count >= 1 else 0
    unit = ("B", "KiB", "MiB", "GiB", "TiB")[power]
    value = count / 1024**power
    return f"{value:.0f} {unit}" if power == 0 or value >= 100 else f"{value:.3g} {unit}"


def count(value: float | None) -> str:
    """A whole number with thin spaces between thousands."""
    return "–" if value is None else f"{round(value):,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def power_of_ten(value: float | None) -> str:
    """FLOPs: 3.2 x 10^12 in text."""
    if not value:
        return "–"
    exponent = math.floor(math.log10(value))
    digits = str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{value / 10**exponent:.1f} × 10{digits}"


def mean(values: Iterable[float | None] | None) -> float | None:
    """The mean of what is not None, or None where nothing is left."""
    known = [value for value in values or () if value is not None]
    return sum(known) / len(known) if known else None


def in_order(rows: list[Row]) -> list[Row]:
    """Rows in the order of the method's tables, unknown ones last."""
    rank = {row: i for i, row in enumerate(ROW_ORDER)}
    filled = [
        {
            "differences": {},
            "history": [],
            "recipe": [],
            "reach_full_minus_half": None,
            "flops": None,
            **row,
        }
        for row in rows
    ]
    return sorted(filled, key=lambda row: rank.get(row["row"], len(rank)))


def settled(difference: dict[str, Any]) -> int:
    """+1 or -1 where the 95 % interval lies above or below 0, otherwise 0."""
    return int(difference["low"] > 0) - int(difference["high"] < 0)


def _interval(difference: dict[str, Any]) -> str:
    paired = "paired 95 %" if difference.get("paired") else "95 %"
    return (
        f"{signed(difference['mean'])} points, {paired} interval "
        f"{signed(difference['low'])} to {signed(difference['high'])}"
    )


def _verdict_on_pool(rows: dict[str, Row], attack: str) -> str:
    difference = rows.get("full", {}).get("differences", {}).get("none")
    if difference is None:
        return "Whether the generated pool helps was not measured (it takes the rows full and none)"
    pool, alone = "the whole generated pool", "the labelled images alone"
    outcome = {
        1: f"{pool.capitalize()} raises {attack} robust accuracy over {alone}",
        -1: f"{pool.capitalize()} lowers {attack} robust accuracy below {alone}",
        0: f"Between {pool} and {alone} there is no difference in {attack} robust accuracy "
        "that 95 % settles",
    }
    return f"{outcome[settled(difference)]} ({_interval(difference)})"


def _verdict_on_selectors(rows: dict[str, Row]) -> str:
    found = {
        name: rows[name]["differences"]["random"]
        for name in SELECTORS
        if name in rows and "random" in rows[name]["differences"]
    }
    if not found:
        return "no selector was compared with a random choice"
    better = [f"{name} ({_interval(d)})" for name, d in found.items() if settled(d) > 0]
    worse = [f"{name} ({_interval(d)})" for name, d in found.items() if settled(d) < 0]
    parts = []
    if better:
        parts.append(f"better than a random choice of the same size: {', '.join(better)}")
    if worse:
        parts.append(f"worse than a random choice of the same size: {', '.join(worse)}")
    rest = [name for name in found if settled(found[name]) == 0]
    if rest:
        parts.append(
            f"between {', '.join(rest)} and a random choice of the same size "
            "there is no difference that 95 % settles"
        )
    return "; ".join(parts)


def verdict(results: dict[str, Any]) -> str:
    """One sentence: does the pool help, does any selector beat random, how far to trust it."""
    rows = {row["row"]: row for row in in_order(results["rows"])}
    attack = next(iter(rows.values()))["accuracy"]["pgd"]["name"]
    seeds = len(results["seeds"])
    trust = (
        "with a single seed, the intervals are over test images only and say nothing about seeds"
        if seeds == 1
        else f"intervals over {seeds} seeds and the test images together"
    )
    return f"{_verdict_on_pool(rows, attack)}; {_verdict_on_selectors(rows)}; {trust}."


def _accuracy_cell(row: Row, measure: str) -> dict[str, str] | None:
    cell = row["accuracy"].get(measure)
    if cell is None:
        return None
    num_seeds, num_row_seeds = len(cell["seeds"]), len(row["seeds"])
    return {
        "value": f"{cell['mean']:.1f}",
        "interval": f"{cell['low']:.1f} – {cell['high']:.1f}",
        "by_seed": ", ".join(f"{value:.1f}" for value in cell["by_seed"]),
        "note": f"{num_seeds} of {num_row_seeds} seeds" if num_seeds < num_row_seeds else "",
    }


def _reach_cell(row: Row, key: str) -> dict[str, str] | None:
    reach = row["reach_full_minus_half"]
    if reach is None:
        return None
    reached = [value for value in reach[key] if value is not None]
    form = count if key == "steps" else duration
    note = "" if len(reached) == len(reach[key]) else f"{len(reached)} of {len(reach[key])} seeds"
    return {"value": form(mean(reached)) if reached else "not reached", "note": note}


def _memory(row: Row) -> tuple[float | None, str]:
    peaks = row["peak_memory_bytes"]
    stages = {stage: peak for stage, peak in peaks.items() if stage != "max"}
    return peaks["max"], max(stages, key=lambda stage: stages[stage]) if stages else ""


def _row_view(row: Row, measures: list[str]) -> dict[str, Any]:
    peak, peak_stage = _memory(row)
    return {
        "name": row["row"],
        "about": ABOUT.get(row["row"], ""),
        "recipe": sorted(set(row["recipe"])),
        "accuracy": {measure: _accuracy_cell(row, measure) for measure in measures},
        "images": row["images"],
        "plateau": mean(row["steps"]["plateau"]),
        "steps": mean(row["steps"]["total"]),
        "seconds_train": mean(row["seconds_train"]),
        "reach_steps": _reach_cell(row, "steps"),
        "reach_seconds": _reach_cell(row, "seconds"),
        "seconds": row["seconds"],
        "flops": row["flops"],
        "peak": peak,
        "peak_stage": peak_stage,
        "bytes": row["bytes"],
        "differences": row["differences"],
    }


def _stage_order(rows: list[Row]) -> list[str]:
    seen = {stage: None for row in rows for stage in row["seconds"] if stage != "total"}
    return sorted(seen, key=lambda stage: STAGES.index(stage) if stage in STAGES else len(STAGES))


def _charts(rows: list[Row], data: FigureData) -> dict[str, Any]:
    images = {row["row"]: float(row["images"]["labelled"] + row["images"]["pool"]) for row in rows}
    total = {row["row"]: float(row["seconds"]["total"]) for row in rows}
    near, real = np.asarray(data.neighbour_generated), np.asarray(data.neighbour_real)
    threshold = float(np.percentile(real, 1))
    charts: dict[str, Any] = {
        "forest": draw.forest(rows, "random"),
        "images": draw.accuracy_against(rows, images, "training images"),
        "time": draw.accuracy_against(rows, total, "total time, s"),
        "curves": draw.validation_curves(rows),
        "scores": {name: draw.score_histogram(data, name) for name in data.scores},
        "neighbours": draw.two_densities(
            near, real, "distance to the nearest labelled training image", "neighbours"
        ),
        "near_median": float(np.median(near)),
        "real_median": float(np.median(real)),
        "near_threshold": threshold,
        "near_share": 100 * float(np.mean(near < threshold)),
    }
    method = data.show_method
    if method is not None:
        pool_scores, real_scores = data.scores[method], data.real_scores.get(method)
        charts["projection"], charts["shares"] = draw.projection(data, method)
        if real_scores is not None:
            charts["margins"] = draw.two_densities(
                pool_scores, real_scores, f"{method} score", "margins"
            )
            charts["margin_medians"] = (
                float(np.median(pool_scores)),
                float(np.median(real_scores)),
            )
    return charts


def _tiles(data: FigureData, chosen: Iterable[int]) -> list[dict[str, Any]]:
    tiles = []
    for i in map(int, chosen):
        guesses = [
            (int(label), 100 * float(probability))
            for label, probability in zip(
                data.top_classes[i], data.top_probabilities[i], strict=True
            )
        ]
        alt = f"generated for class {data.labels[i]}; model says " + ", ".join(
            f"{label}: {probability:.0f} %" for label, probability in guesses
        )
        tiles.append({"src": draw.png_uri(data.images[i]), "alt": alt, "guesses": guesses})
    return tiles


def _grids(data: FigureData) -> dict[str, Any]:
    """Boundary images by ascending score, and as many others drawn with a fixed seed."""
    if data.show_method is None:
        return {}
    scores, reasons = data.scores[data.show_method], data.reasons[data.show_method]
    boundary = np.flatnonzero(reasons == BOUNDARY)
    boundary = boundary[np.argsort(scores[boundary], kind="stable")][:_GRID]
    others = np.random.default_rng(0).permutation(np.flatnonzero(reasons != BOUNDARY))[:_GRID]
    return {"boundary": _tiles(data, boundary), "others": _tiles(data, others)}


def _strip(images: draw.UInt8) -> str:
    """A data URI of images side by side, with a transparent gap of an eighth of their width."""
    num, height, width, channels = images.shape
    opaque = np.full((num, height, width, 1), 255, dtype=np.uint8)
    colours = np.repeat(images, 3, axis=-1) if channels == 1 else images
    gap = np.zeros((num, height, max(width // 8, 1), 4), dtype=np.uint8)
    padded = np.concatenate([np.concatenate([colours, opaque], axis=-1), gap], axis=2)
    return draw.png_uri(np.concatenate(list(padded), axis=1)[:, : -gap.shape[2]])


def _class_strips(data: FigureData) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    strips = []
    for label in np.unique(data.labels):
        generated = rng.permutation(np.flatnonzero(data.labels == label))[:_PER_CLASS]
        real = rng.permutation(np.flatnonzero(data.real_labels == label))[:_PER_CLASS]
        if len(generated) and len(real):
            strips.append(
                {
                    "label": int(label),
                    "generated": _strip(data.images[generated]),
                    "real": _strip(data.real_images[real]),
                    "num_generated": len(generated),
                    "num_real": len(real),
                }
            )
    return strips


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "signed": signed,
        "duration": duration,
        "size": size,
        "count": count,
        "power_of_ten": power_of_ten,
        "settled": settled,
    }
    return environment


def render(results: dict[str, Any], figures: FigureData) -> str:
    """The complete report as HTML with nothing outside it; every number comes from the arguments.

    Args:
        results: the content of results.json (its schema is in docs/).
        figures: the arrays behind the figures; its `scores` may be empty, `show_method` None.
    """
    rows = in_order(results["rows"])
    measures = [m for m in MEASURES if any(m in row["accuracy"] for row in rows)]
    names = {
        m: next(row["accuracy"][m]["name"] for row in rows if m in row["accuracy"])
        for m in measures
    }
    selected = next((row for row in rows if row["row"] in ("random", *SELECTORS)), None)
    headline = [
        row for row in rows if row["row"] in ("none", "random", figures.show_method, "full")
    ]
    stages = _stage_order(rows)
    template = _environment().get_template("report.html.j2")
    return template.render(
        results=results,
        verdict=verdict(results).replace(" %", "\N{NO-BREAK SPACE}%"),
        rows=[_row_view(row, measures) for row in rows],
        headline=[_row_view(row, measures) for row in headline],
        measures=measures,
        measure_names=names,
        num_selected=selected["images"]["pool"] if selected else None,
        stages=stages,
        stage_colours={
            stage: STAGES.index(stage) if stage in STAGES else len(STAGES) + i % 2
            for i, stage in enumerate(stages)
        },
        run_stages=[dict.fromkeys(_STAGE_FACTS) | stage for stage in results["stages"]],
        longest=max(row["seconds"]["total"] for row in rows) or 1,
        charts=_charts(rows, figures),
        grids=_grids(figures),
        strips=_class_strips(figures),
        show_method=figures.show_method,
        config=json.dumps(results["config"], indent=2, ensure_ascii=False, default=str),
    )
