"""Tables and lines in the terminal: results, selections, guided images, drift, estimates."""

from __future__ import annotations

import json
from typing import Any

from rich.table import Table

from ssat_ray.drift import MethodDrift
from ssat_ray.estimate import Estimate, Measurements
from ssat_ray.plan import Plan
from ssat_ray.report import words
from ssat_ray.report.guided import beside_base, guided_cells, guided_images
from ssat_ray.report.words import Row, duration
from ssat_ray.selection.drift import Drift
from ssat_ray.stages.quality import QUALITY
from ssat_ray.store import Store

_NAMED_SHARDS = 5
_SHORT_HEADS = "near %", "median", "real", "agree %", "coverage", "density", "confidence", "Fréchet"
"""Of `guided_cells`, as `report.guided.HEADS` has them in full."""


def results_table(results: dict[str, Any]) -> Table:
    """The comparison for the terminal: accuracies with intervals, images, steps, seconds."""
    rows = results["rows"]
    names = words.attack_names(rows)
    caption = "\n".join(words.notes(results)) or None
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.caption, table.caption_justify = caption, "left"
    accuracies = [f"{name} %" for name in names.values()]
    for heading in ("row", "images", *accuracies, "PGD vs random", "steps", "total s"):
        table.add_column(heading, justify="left" if heading == "row" else "right")
    for row in rows:
        entries = [row["accuracy"].get(attack) for attack in names]
        difference = row["differences"].get("random")
        table.add_row(
            row["row"],
            f"{words.num_images(row):,}",
            *(words.interval(entry) if entry else "" for entry in entries),
            words.interval(difference, sign=True) if difference else "",
            words.steps_in_text(row),
            f"{row['seconds']['total']:,.0f}",
        )
    return table


def selection_table(results: dict[str, Any]) -> Table:
    """What a selection kept, for the terminal."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for heading in ("row", "seed", "kept", "of", "boundary", "cut", "tied", "duplicates"):
        table.add_column(heading, justify="left" if heading == "row" else "right")
    for one in results["selections"]:
        cut = "" if one["cut"] is None else f"{one['cut']:.6g}"
        counts = [one[key] for key in ("images", "of_images", "boundary")]
        rest = [f"{one[key]:,}" for key in ("tied_at_cut", "duplicates")]
        table.add_row(one["row"], str(one["seed"]), *(f"{n:,}" for n in counts), cut, *rest)
    memory = results["memory"]
    peak = f"; at most {words.size(memory['peak_bytes'])}" if memory else ""
    table.caption = f"{duration(results['total_wall_seconds'])}{peak}"
    table.caption_justify = "left"
    return table


def selection_lines(plan: Plan, store: Store) -> list[str]:
    """Where the chosen images of each row and seed are."""
    return [
        f"{row} seed {seed}: {store.folder(job)}"
        for (row, seed, stage), job in plan.jobs.items()
        if stage == "select"
    ]


def guided_rows(plan: Plan, store: Store) -> list[Row]:
    """Each guided row and what `quality` found of its images, by seed, as in results.json; all are published."""
    found: dict[str, Row] = {}
    for (row, _, stage), job in plan.jobs.items():
        if stage == "quality":
            seen = json.loads((store.folder(job) / QUALITY).read_text())
            found.setdefault(row, {"row": row, "quality": []})["quality"].append(seen)
    return list(found.values())


def quality_lines(plan: Plan, store: Store) -> list[str]:
    """Where the figures of the guided images of each row and seed are."""
    return [
        f"{row} seed {seed}: {store.folder(job) / QUALITY}"
        for (row, seed, stage), job in plan.jobs.items()
        if stage == "quality"
    ]


def guided_table(rows: list[Row]) -> Table:
    """What guide and judge say of the images of `guided_rows`, means over seeds, for the terminal."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for heading in ("row", "by", *_SHORT_HEADS, "nearest"):
        table.add_column(heading, justify="left" if heading in ("row", "by") else "right")
    for one in guided_images(rows):
        nearest = beside_base(one, "nearest", "{:.3f}".format)
        table.add_row(one["row"], one["judge"], *guided_cells(one), nearest)
    table.caption = (
        "means over seeds; in brackets: images of the base model. near %: nearer the boundary than 80 % of "
        "these; median, real: median score of guided and of real images over theirs; nearest: median "
        "distance to the nearest training image"
    )
    table.caption_justify = "left"
    return table


def drift_table(found: MethodDrift) -> Table:
    """Every new shard, generation, and all rows against the clusters' fit, for the terminal."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    headings = ("generation", "shard", "rows", "inertia", "PSI clusters", "PSI score", "KS", "says")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "says" else "right")
    for one in found.shards:
        numbers = _drift_numbers(one.drift)
        table.add_row(str(one.generation), str(one.shard), *numbers, one.judgement.status)
    for batch in found.generations if len(found.generations) > 1 else ():
        numbers = _drift_numbers(batch.drift)
        table.add_row(str(batch.generation), "all", *numbers, batch.judgement.status)
    numbers = _drift_numbers(found.whole)
    table.add_row("all", "all", *numbers, found.verdict.together.status, style="bold")
    return table


def drift_lines(found: MethodDrift) -> list[str]:
    """The verdict on one method's clusters in words, after those on shards that are not stable.

    A shard that is all there is to a generation, and gives the verdict, is not named twice.
    """
    said = found.verdict.reason
    odd = [
        one
        for one in found.shards
        if one.judgement.status != "stable" and one.judgement.reason not in said
    ]
    lines = [
        f"generation {one.generation} shard {one.shard}, {one.judgement.status}: {one.judgement.reason}"
        for one in odd[:_NAMED_SHARDS]
    ]
    if len(odd) > _NAMED_SHARDS:
        lines.append(f"and {len(odd) - _NAMED_SHARDS} more shards (--json has the words for all)")
    if found.left_out:
        lines.append(f"{found.left_out:,} new images could not be read and are not compared")
    return [*lines, f"{found.method}, {found.verdict.status}: {said}"]


def _drift_numbers(drift: Drift) -> tuple[str, ...]:
    sizes = (drift.cluster_psi, drift.score_psi, drift.ks)
    return (f"{drift.num_rows:,}", f"{drift.inertia_ratio:.3f}", *(f"{size:.3f}" for size in sizes))


def estimate_table(found: Estimate) -> Table:
    """A line a stage and the total of an estimate, for the terminal."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    memory = ("memory of session", "of an actor")
    headings = ("stage", "start", "work", *memory, "on disk", "until it ends", "")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("stage", "") else "right")
    for one in found.stages:
        times = [duration(seconds) for seconds in (one.start_seconds, one.seconds)]
        sizes = [
            words.size(count) if count else ""
            for count in (one.session_bytes, one.actor_bytes, one.disk_bytes, one.scratch_bytes)
        ]
        mark = "bottleneck" if one.stage == found.bottleneck else ""
        table.add_row(one.stage, *times, *sizes, mark)
    return table


def estimate_lines(found: Estimate, measured: Measurements) -> list[str]:
    """The sums of an estimate, and what it rests on."""
    total = (
        f"{found.images:,} images: {duration(found.seconds)}, of which {duration(measured.session_seconds)} "
        f"start the program and Ray; at most {words.size(found.peak_bytes)}, and {words.size(found.disk_bytes)} on disk"
    )
    more = {
        "{:.3g} GPU-hours": found.gpu_hours,
        "{:.3g} kWh": found.kwh,
        "cost {:.3g}": found.cost,
    }
    sums = [form.format(value) for form, value in more.items() if value is not None]
    rates = [f"measured: {value:,.0f} {name}" for name, value in measured.rates.items()]
    return ["; ".join([total, *sums]), *rates, *found.notes]
