"""The comparison as a Markdown table: what `make results` prints and the README shows."""

from __future__ import annotations

from typing import Any

from ssat_ray.report import words
from ssat_ray.report.guided import (
    HEADS,
    NEAREST,
    guided_cells,
    guided_classes,
    guided_images,
    nearest_images,
)


def markdown_table(results: dict[str, Any]) -> str:
    """Rows with accuracies and 95 % intervals (percent), images, steps, total seconds and memory; by class.

    AutoAttack may cover fewer seeds than the rest; its heading says so.
    """
    rows, seeds = results["rows"], results["seeds"]
    names = words.attack_names(rows)
    heads = ["row", "images"]
    for attack, name in names.items():
        covered = next(r["accuracy"][attack]["seeds"] for r in rows if attack in r["accuracy"])
        heads.append(f"{name} %" + (f" ({_seeds(covered)})" if len(covered) < len(seeds) else ""))
    heads += ["PGD minus `random`, points", "steps", "total s", "peak MiB (stage)"]
    lines = [_line(heads), "|" + "---|" + "---:|" * (len(heads) - 1)]
    for row in rows:
        accuracy = [row["accuracy"].get(attack) for attack in names]
        difference = row["differences"].get("random")
        peak, stage = words.peak_memory(row)
        cells = [
            f"`{row['row']}`",
            f"{words.num_images(row):,}",
            *(words.interval(entry) if entry else "" for entry in accuracy),
            words.interval(difference, sign=True) if difference else "",
            words.steps_in_text(row),
            f"{row['seconds']['total']:,.0f}",
            f"{peak / 2**20:,.0f}" + (f" ({stage})" if stage else ""),
        ]
        lines.append(_line(cells))
    machine, images = results["machine"], f"the {results['data']['num_test']} test images"
    over = f"seeds and {images} together" if len(seeds) > 1 else f"{images} only"
    lines += [
        "",
        f"{_seeds(seeds).capitalize()}; 95 % intervals over {over}; {words.radius(results)}. "
        f"Machine: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB; "
        f"torch {machine['versions']['torch']}, Ray {machine['versions']['ray']}; "
        f"{results['created'][:10]}, commit {words.short_commit(results['git_commit'])}.",
    ]
    for note in words.notes(results):
        lines += ["", note]
    lines += ["", f"{names['pgd']} accuracy by class, %:", "", *_class_table(rows)]
    guided = guided_images(rows)
    if guided:
        lines += ["", "Guided images, the base model's in brackets:", "", *_guided_table(guided)]
        text = "Distance to the nearest training image, pixels in [0, 1], quantiles:"
        lines += ["", text, "", *_nearest_table(rows)]
    if classes := guided_classes(rows):
        lines += ["", "Images by most probable class, %:", "", *_guided_class_table(classes)]
    return "\n".join(lines) + "\n"


def _class_table(rows: list[words.Row]) -> list[str]:
    heads = ["row", "worst", *map(str, words.shown_classes(rows[0]))]
    cells = [_line([f"`{row['row']}`", *words.class_cells(row)]) for row in rows]
    return [_line(heads), "|" + "---|" + "---:|" * (len(heads) - 1), *cells]


def _guided_table(guided: list[dict[str, Any]]) -> list[str]:
    heads = ["row", "seen by", *HEADS]
    cells = [_line([f"`{g['row']}`", g["name"], *guided_cells(g)]) for g in guided]
    return [_line(heads), "|---|---|" + "---:|" * (len(heads) - 2), *cells]


def _nearest_table(rows: list[words.Row]) -> list[str]:
    heads = ["images", *NEAREST.values()]
    cells = [_line([title, *quantiles]) for title, quantiles in nearest_images(rows)]
    return [_line(heads), "|---|" + "---:|" * (len(heads) - 1), *cells]


def _guided_class_table(classes: list[tuple[str, str, list[str]]]) -> list[str]:
    heads = ["images", "seen by", *map(str, range(len(classes[0][2])))]
    cells = [_line([title, name, *shares]) for title, name, shares in classes]
    return [_line(heads), "|---|---|" + "---:|" * (len(heads) - 2), *cells]


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _seeds(seeds: list[int]) -> str:
    return f"seed{'' if len(seeds) == 1 else 's'} {', '.join(map(str, seeds))}"
