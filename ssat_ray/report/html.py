"""Turn `results.json` and the arrays behind the figures into one self-contained report.html."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ssat_ray.report import figures as draw
from ssat_ray.report import words
from ssat_ray.report.drawing import STAGE_COLOURS, UInt8, png_uri
from ssat_ray.report.figures import BOUNDARY, FigureData, GuidedData
from ssat_ray.report.guided import (
    HEADS,
    JUDGES,
    NEAREST,
    guided_cells,
    guided_classes,
    guided_images,
    nearest_images,
)
from ssat_ray.report.words import Row, count, duration, mean

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
_PER_CLASS, _PER_ROW = 10, 20


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


def _steps_cell(row: Row, key: str) -> dict[str, str]:
    value, note = words.steps(row, key)
    return {"value": value, "note": note}


def _row_view(row: Row, measures: list[str]) -> dict[str, Any]:
    peak, peak_stage = words.peak_memory(row)
    return {
        "name": row["row"],
        "about": words.ABOUT.get(row["row"], ""),
        "recipe": sorted(set(row["recipe"])),
        "accuracy": {measure: _accuracy_cell(row, measure) for measure in measures},
        "images": row["images"],
        "plateau": _steps_cell(row, "plateau"),
        "steps": _steps_cell(row, "total")["value"],
        "seconds_train": mean(row["seconds_train"]),
        "reach_steps": _reach_cell(row, "steps"),
        "reach_seconds": _reach_cell(row, "seconds"),
        "seconds": row["seconds"],
        "flops": row["flops"],
        "peak": peak,
        "peak_stage": peak_stage,
        "train_rise": max((r for r in row["train_rise_bytes"] if r is not None), default=None),
        "bytes": row["bytes"],
        "differences": row["differences"],
        "by_class": words.class_cells(row),
    }


def _charts(rows: list[Row], data: FigureData) -> dict[str, Any]:
    images = {row["row"]: float(words.num_images(row)) for row in rows}
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


def _guided_figures(row: str, data: GuidedData) -> dict[str, Any]:
    charts = [
        {
            "name": JUDGES[judge],
            "svg": draw.two_densities(
                base,
                guided,
                f"{row} score, by {JUDGES[judge]}",
                f"guided-{row}-{judge}",
                "images of the base model and guided ones",
            ),
        }
        for judge, (base, guided) in data.scores.items()
    ]
    return {
        "row": row,
        "charts": charts,
        "before": _strip(data.before[:_PER_ROW]),
        "after": _strip(data.after[:_PER_ROW]),
    }


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
        tiles.append({"src": png_uri(data.images[i]), "alt": alt, "guesses": guesses})
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


def _strip(images: UInt8) -> str:
    """A data URI of images side by side, with a transparent gap of an eighth of their width."""
    num, height, width, channels = images.shape
    opaque = np.full((num, height, width, 1), 255, dtype=np.uint8)
    colours = np.repeat(images, 3, axis=-1) if channels == 1 else images
    gap = np.zeros((num, height, max(width // 8, 1), 4), dtype=np.uint8)
    padded = np.concatenate([np.concatenate([colours, opaque], axis=-1), gap], axis=2)
    return png_uri(np.concatenate(list(padded), axis=1)[:, : -gap.shape[2]])


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


def environment() -> Environment:
    """Templates of this package with the helpers of `words` as filters; undefined names are errors."""
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (
        words.signed,
        words.duration,
        words.size,
        words.count,
        words.percent,
        words.share,
        words.number,
        words.power_of_ten,
        words.settled,
    )
    templates.filters |= {function.__name__: function for function in filters}
    return templates


def render(results: dict[str, Any], figures: FigureData) -> str:
    """The complete report as HTML with nothing outside it; every number comes from the arguments.

    Args:
        results: the content of results.json (its schema is in docs/).
        figures: the arrays behind the figures; its `scores` may be empty, `show_method` None.
    """
    rows = words.in_order(results["rows"])
    names = words.attack_names(rows)
    measures = list(names)
    selected = next((row for row in rows if row["row"] in ("random", *words.SELECTORS)), None)
    headline = [
        row for row in rows if row["row"] in ("none", "random", figures.show_method, "full")
    ]
    stages, known = words.stages_in(rows), words.STAGES
    template = environment().get_template("report.html.j2")
    return template.render(
        results=results,
        radius=words.radius(results),
        bound=words.bound(results),
        verdict=words.verdict(results).replace(" %", "\N{NO-BREAK SPACE}%"),
        rows=[_row_view(row, measures) for row in rows],
        headline=[_row_view(row, measures) for row in headline],
        measures=measures,
        measure_names=names,
        classes=words.shown_classes(rows[0]),
        num_selected=selected["images"]["pool"] if selected else None,
        notes=words.notes(results),
        stages=stages,
        stage_colours={
            stage: (known.index(stage) if stage in known else i) % len(STAGE_COLOURS)
            for i, stage in enumerate(stages)
        },
        run_stages=[dict.fromkeys(_STAGE_FACTS) | stage for stage in results["stages"]],
        longest=max(row["seconds"]["total"] for row in rows) or 1,
        charts=_charts(rows, figures),
        grids=_grids(figures),
        strips=_class_strips(figures),
        show_method=figures.show_method,
        guided=[(entry, guided_cells(entry)) for entry in guided_images(rows)],
        guided_heads=HEADS,
        nearest=nearest_images(rows),
        nearest_heads=list(NEAREST.values()),
        guided_classes=guided_classes(rows),
        guided_figures=[_guided_figures(row, data) for row, data in figures.guided.items()],
        config=json.dumps(results["config"], indent=2, ensure_ascii=False, default=str),
    )
