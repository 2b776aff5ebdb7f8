"""A comparison as one self-contained compare.html; every number comes from `analysis.analyse`."""

from __future__ import annotations

from typing import Any

from ssat_ray.comparison import figures as draw
from ssat_ray.comparison.analysis import COSTS
from ssat_ray.comparison.effects import distinct, text, value_key
from ssat_ray.comparison.outcomes import VALIDATION
from ssat_ray.comparison.words import (
    IN_WORDS,
    accuracy_text,
    cost_text,
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
        cost_text=cost_text,
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
    """The candidates as a table of two settings, if two vary and one row has every combination.

    Returns:
        `row`, `down` and `across` (the settings), `columns` (values of the second), `lines`: for each value of
        the first, that value and the outcomes.
    """
    candidates = [entry for entry in content["outcomes"] if entry["candidate"]]
    keys = [k for k in content["settings"] if all(k in e["settings"] for e in candidates)]
    keys = [k for k in keys if len(distinct([e["settings"][k] for e in candidates])) > 1]
    if len(keys) != 2 or len({entry["row"] for entry in candidates}) != 1:
        return None
    down, across = keys
    lines, columns = (distinct([e["settings"][key] for e in candidates]) for key in keys)
    cells = {
        (value_key(e["settings"][down]), value_key(e["settings"][across])): e for e in candidates
    }
    if not len(candidates) == len(cells) == len(lines) * len(columns):
        return None
    return {
        "row": candidates[0]["row"],
        "down": down,
        "across": across,
        "columns": [text(value) for value in columns],
        "lines": [
            (text(line), [cells[value_key(line), value_key(column)] for column in columns])
            for line in lines
        ],
    }
