"""A comparison in the terminal: a table of outcomes, and lines that say what it settles."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from ssat_ray.comparison.words import accuracy_text, cost_of, noise_text, points, spent_text
from ssat_ray.report.words import ATTACKS, signed, size

Record = dict[str, Any]


def outcomes_table(content: Record) -> Table:
    """One line an outcome, in the order of total time; the recommended one bold.

    Args:
        content: of `analysis.analyse`.
    """
    entries, attack = content["outcomes"], content["attack"]
    known = [a for a in ATTACKS if any(a in entry["accuracy"] for entry in entries)]
    others = [a for a in known if a != attack]
    names = {a: e["accuracy"][a]["name"] for e in entries for a in e["accuracy"]}
    baselines = [row for row in ("random", "full") if any(row in e["differences"] for e in entries)]
    energy = content["watts"] is not None
    gpus = any(entry["gpu_hours"] for entry in entries)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("outcome")
    headings = ["seeds", "images", f"{names[attack]} %", *(f"{names[a]} %" for a in others)]
    headings += ["total time", "memory", *(f"vs {row}" for row in baselines)]
    headings += [*(["GPU-h"] if gpus else []), *(["kWh"] if energy else []), "front"]
    for heading in headings:
        table.add_column(heading, justify="right")
    for entry in sorted(entries, key=lambda one: one["time"]):
        means = [entry["accuracy"].get(a) for a in others]
        hours, kwh = entry["gpu_hours"], entry["kwh"]
        cells = [
            entry["name"],
            str(len(entry["seeds"])),
            "–" if entry["images"] is None else f"{entry['images']:,}",
            accuracy_text(entry[attack]),
            *("" if mean is None else f"{mean['mean']:.1f}" for mean in means),
            cost_of(entry, "time"),
            size(entry["memory"]),
            *(_difference(entry["differences"].get(row)) for row in baselines),
            *(["–" if hours is None else f"{hours:.3g}"] if gpus else []),
            *([f"{kwh:.3g}"] if energy else []),
            ", ".join(front for front in entry["fronts"] if front != "all"),
        ]
        chosen = entry["name"] == content["recommended"]["name"]
        table.add_row(*cells, style="bold" if chosen else None)
    return table


def _difference(difference: Record | None) -> str:
    if difference is None:
        return ""
    if difference["low"] is None:
        return signed(difference["mean"])
    bounds = f"[{signed(difference['low'])}, {signed(difference['high'])}]"
    return f"{signed(difference['mean'])} {bounds}"


def comparison_lines(content: Record) -> list[str]:
    """Warnings, what the intervals rest on, effects, what is open, trials without results, time, the recommendation."""
    lines = [f"warning: {warning}" for warning in content["warnings"]]
    lines.append(f"intervals of 95 %: {noise_text(content['noise'])}")
    for setting in content["effects"]["settings"]:
        lines.append(_effect_line(setting))
    differences = [
        difference
        for entry in content["outcomes"]
        for row, difference in entry["differences"].items()
        if entry["candidate"] and row != "none"
    ]
    undecided = sum(not difference["settled"] for difference in differences)
    if undecided:
        lines.append(
            f"{undecided} of {len(differences)} differences to random and full are not settled; the page "
            "says how many seeds would settle each"
        )
    for trial in content["unfinished"]:
        cause = f": {trial['cause']}" if trial["cause"] else ""
        lines.append(f"{trial['name']} has no results, {trial['status']}{cause}")
    spent = content["spent"]
    if spent is not None:
        lines.append(f"computing time of all artefacts, each once: {spent_text(**spent)}")
    chosen = content["recommended"]
    lines += [f"recommended: {' '.join(chosen['reason'])}"]
    if chosen["export"] is not None:
        lines.append(f"as a preset: {chosen['export']}")
    return lines


def _effect_line(setting: Record) -> str:
    if not setting["separable"]:
        return f"effect of {setting['setting']}: it varies together with other settings"
    levels = [f"{level['value']}: {points(level['effect'])}" for level in setting["levels"]]
    return f"effect of {setting['setting']} on the mean: " + "; ".join(levels)
