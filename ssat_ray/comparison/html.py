"""A comparison as one self-contained compare.html; every number comes from `analysis.analyse`."""

from __future__ import annotations

from typing import Any

from ssat_ray.comparison import figures as draw
from ssat_ray.comparison.analysis import COSTS
from ssat_ray.comparison.effects import distinct, text, value_key
from ssat_ray.comparison.outcomes import BASELINES, VALIDATION
from ssat_ray.comparison.words import (
    IN_WORDS,
    accuracy_text,
    cost_of,
    noise_text,
    points,
    seeds_text,
    spent_text,
)
from ssat_ray.report import words
from ssat_ray.report.html import environment

Record = dict[str, Any]


def render(content: Record, name: str, created: str) -> str:
    """The page, with nothing outside it and readable without JavaScript.

    Args:
        content: of `analyse`.
        name: what was compared, for the title.
        created: when, for people.
    """
    outcomes = content["outcomes"]
    template = environment().get_template("compare.html.j2")
    return template.render(
        results={"name": name},
        content=content,
        created=created,
        chosen=_named(content, content["recommended"]["name"]),
        best=_named(content, content["recommended"]["best"]),
        attacks=[
            attack
            for attack in (*words.ATTACKS, VALIDATION)
            if any(attack in entry["accuracy"] for entry in outcomes)
        ],
        attack_names={a: e["accuracy"][a]["name"] for e in outcomes for a in e["accuracy"]},
        baselines=[
            row for row in ("random", "full") if any(row in e["differences"] for e in outcomes)
        ],
        fronts={by: draw.front(content, by) for by in COSTS},
        cost_words=IN_WORDS,
        cost_of=cost_of,
        points=points,
        seeds_text=seeds_text,
        accuracy_text=accuracy_text,
        noise_text=noise_text,
        spent_text=spent_text,
        effects=[
            {**setting, "svg": draw.effect(setting, number)}
            for number, setting in enumerate(content["effects"]["settings"])
        ],
        forests={row: draw.forest(content, row) for row in ("random", "full")},
        grid=grid(content),
        energy=content["watts"] is not None,
        on_images=any("images" in d["over"] for e in outcomes for d in e["differences"].values()),
        gpus=any(entry["gpu_hours"] for entry in outcomes),
    )


def _named(content: Record, name: str) -> Record:
    return next(entry for entry in content["outcomes"] if entry["name"] == name)


def grid(content: Record) -> Record | None:
    """The candidates as a table of two settings, if two vary and one row has half of the combinations or more.

    Returns:
        `row`, `down` and `across` (the settings), `columns` (values of the second), `lines`: for each value of
        the first, that value and the outcomes; instead of one that is missing its trial's status, or `–`;
        `baselines`: a line for each that does not depend on the first setting.
    """
    candidates = [entry for entry in content["outcomes"] if entry["candidate"]]
    keys = [k for k in content["settings"] if all(k in e["settings"] for e in candidates)]
    keys = [k for k in keys if len(distinct([e["settings"][k] for e in candidates])) > 1]
    if len(keys) != 2 or len({entry["row"] for entry in candidates}) != 1:
        return None
    down, across = keys
    others = [t for t in content["unfinished"] if {down, across} <= t["settings"].keys()]
    lines, columns = (distinct([e["settings"][k] for e in (*candidates, *others)]) for k in keys)
    cells = {
        (value_key(e["settings"][down]), value_key(e["settings"][across])): e for e in candidates
    }
    if len(candidates) > len(cells) or 2 * len(cells) < len(lines) * len(columns):
        return None
    without = {
        (value_key(t["settings"][down]), value_key(t["settings"][across])): t["status"]
        for t in others
    }

    def cell(line: Any, column: Any) -> Record | str:
        place = value_key(line), value_key(column)
        return cells.get(place) or without.get(place, "–")

    return {
        "row": candidates[0]["row"],
        "down": down,
        "across": across,
        "columns": [text(value) for value in columns],
        "lines": [(text(line), [cell(line, column) for column in columns]) for line in lines],
        "baselines": [
            (row, [_at(content, row, down, across, column) or "–" for column in columns])
            for row in BASELINES
            if any(_at(content, row, down, across, column) for column in columns)
        ],
    }


def _at(content: Record, row: str, down: str, across: str, value: Any) -> Record | None:
    """The baseline with this value of one setting, or with any, if it does not depend on the other."""
    found = [
        entry
        for entry in content["outcomes"]
        if entry["row"] == row
        and not entry["candidate"]
        and down not in entry["settings"]
        and value_key(entry["settings"].get(across, value)) == value_key(value)
    ]
    return found[0] if len(found) == 1 else None
