"""From outcomes to what is shown: settings that vary, accuracies, differences, fronts, effects, costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ssat_ray.comparison.differences import accuracy_interval, difference, pooled_noise
from ssat_ray.comparison.effects import levels, main_effects
from ssat_ray.comparison.naming import name_outcomes, varied
from ssat_ray.comparison.outcomes import BASELINES, TEST, VALIDATION, Outcome, Reading
from ssat_ray.comparison.recommendation import by_validation, recommend
from ssat_ray.comparison.statistics import LEVEL, Noise, as_json, pareto_front
from ssat_ray.errors import UserError
from ssat_ray.estimate import energy
from ssat_ray.places import Place

SCHEMA = 1
Record = dict[str, Any]
COSTS = ("time", "images", "memory")


@dataclass(frozen=True)
class Question:
    """What a comparison is asked.

    Attributes:
        attack: whose accuracy counts.
        by: the cost that the recommendation keeps low: `time`, `images` or `memory`.
        watts: that the machines draw while they work, or None; price: of a kWh, or None.
        runs: the runs' folder, for commands.
    """

    attack: str = "pgd"
    by: str = "time"
    watts: float | None = None
    price: float | None = None
    runs: Place = Path("runs")


def analyse(reading: Reading, question: Question) -> Record:
    """Everything that the table, the page and `--json` show (docs/compare.md).

    Raises:
        UserError: no outcome has the attack, or none says what it cost.
    """
    attack = question.attack
    measured = [one for one in reading.outcomes if attack in one.accuracy]
    candidates = [one for one in measured if one.candidate]
    outcomes = candidates + [one for one in measured if not one.candidate]
    if not candidates:
        known = sorted({name for one in reading.outcomes for name in one.accuracy})
        raise UserError(
            f"--attack {attack}: nothing that could be recommended has it; measured are {', '.join(known)}."
        )
    keys = varied(outcomes, reading.keys)
    labels = name_outcomes(outcomes, keys)
    noise = pooled_noise(outcomes, attack)
    usual = _usual_seeds(candidates, attack)
    alike = [one for one in candidates if one.ran(attack, usual)]
    best = max(alike, key=lambda one: one.values(attack, usual).mean())
    entries = [_entry(one, label, question) for one, label in zip(outcomes, labels, strict=True)]
    fronts = _fronts(outcomes, attack, usual)
    for index, (one, entry) in enumerate(zip(outcomes, entries, strict=True)):
        entry["settings"] = {key: one.settings[key] for key in keys if key in one.settings}
        entry[attack] = accuracy_interval(one, attack, noise)
        entry["fronts"] = [name for name, front in fronts.items() if front[index]]
        entry["differences"] = {
            row: found
            for row in BASELINES
            if row != one.row
            and (other := _baseline(one, row, outcomes)) is not None
            and (found := difference(one, other, attack, noise)) is not None
        }
        entry["to_best"] = None if one is best else difference(one, best, attack, noise)
    chosen = recommend(entries, labels[outcomes.index(best)], question.by, attack)
    chosen["by_validation"] = None
    if attack != VALIDATION and all(VALIDATION in one.accuracy for one in outcomes):
        same = replace(reading, outcomes=tuple(outcomes))
        other = analyse(same, replace(question, attack=VALIDATION))["recommended"]
        chosen["by_validation"] = other["name"]
        chosen["reason"].append(by_validation(chosen, other, entries, attack))
    spent = None if reading.spent is None else sum(reading.spent.values())
    return {
        "schema": SCHEMA,
        "attack": attack,
        "attack_name": best.names[attack],
        "by": question.by,
        "level": LEVEL,
        "settings": list(keys),
        "noise": _noise_json(noise),
        "outcomes": entries,
        "recommended": chosen | {"export": _export(chosen["name"], entries, question.runs)},
        "effects": _effects(candidates, attack, usual, keys),
        "unfinished": [vars(one) for one in reading.unfinished],
        "warnings": _warnings(reading, outcomes, keys, usual, question),
        "watts": question.watts,
        "price": question.price,
        "spent": None if spent is None else {"seconds": spent, **_energy(spent, question)},
        "commits": list(reading.commits),
        "machines": sorted({machine for one in outcomes for machine in one.machines}),
    }


def _entry(one: Outcome, label: str, question: Question) -> Record:
    """What an outcome says by itself."""
    return {
        "name": label,
        "row": one.row,
        "candidate": one.candidate,
        "trials": list(one.trials),
        "source": one.source,
        "seeds": list(one.seeds),
        "accuracy": {
            attack: {
                "name": one.names[attack],
                "mean": one.mean(attack),
                "seeds": list(by_seed),
                "by_seed": list(by_seed.values()),
            }
            for attack, by_seed in one.accuracy.items()
        },
        "labelled": one.labelled,
        "pool": one.pool,
        "images": one.images,
        "seconds": one.seconds,
        "time": one.seconds["total"],
        "memory": one.peak_memory,
        "gpu_hours": None if one.gpu_seconds is None else one.gpu_seconds / 3600,
        **_energy(one.seconds["total"], question),
        "lower_bounds": list(one.lower_bounds),
        "machines": list(one.machines),
        "digests": {str(seed): digest for seed, digest in one.digests.items()},
    }


def _energy(seconds: float, question: Question) -> Record:
    kwh, cost = energy(seconds, question.watts, question.price)
    return {"kwh": kwh, "cost": cost}


def _baseline(one: Outcome, row: str, outcomes: Sequence[Outcome]) -> Outcome | None:
    """The one outcome of that row in the runs that have this one too; `full` may have several `random`."""
    shared = [o for o in outcomes if o.row == row and set(o.trials) & set(one.trials)]
    return shared[0] if len(shared) == 1 else None


def _usual_seeds(candidates: Sequence[Outcome], attack: str) -> tuple[int, ...]:
    """The seeds that most candidates have, and of several such sets that which most have among theirs.

    Means over others are of other luck.
    """
    own = [frozenset(one.accuracy[attack]) for one in candidates]
    found = max(
        dict.fromkeys(own),
        key=lambda seeds: (own.count(seeds), sum(seeds <= other for other in own), len(seeds)),
    )
    return tuple(sorted(found))


def _fronts(
    outcomes: Sequence[Outcome], attack: str, usual: tuple[int, ...]
) -> dict[str, list[bool]]:
    """For each cost, and for `all` of them together: is the outcome on the front of accuracy against it?

    Only outcomes with the `usual` seeds can be, by their means over these.
    """
    alike = np.array([one.ran(attack, usual) for one in outcomes])
    gains = np.array(
        [one.values(attack, usual).mean() if one.ran(attack, usual) else 0.0 for one in outcomes]
    )
    costs = np.array(
        [
            [np.nan if c is None else c for c in (o.seconds["total"], o.images, o.peak_memory)]
            for o in outcomes
        ],
        dtype=float,
    )
    found = {}
    for name, columns in {**{c: [i] for i, c in enumerate(COSTS)}, "all": [0, 1, 2]}.items():
        known = alike & ~np.isnan(costs[:, columns]).any(axis=1)
        front = np.zeros(len(outcomes), bool)
        front[known] = pareto_front(costs[known][:, columns], gains[known])
        found[name] = front.tolist()
    return found


def _noise_json(noise: Noise | None) -> Record | None:
    if noise is None:
        return None
    return {
        "points": noise.variance**0.5,
        "degrees_of_freedom": noise.degrees_of_freedom,
        "outcomes": noise.num_outcomes,
        "seeds": noise.num_seeds,
    }


def _effects(
    candidates: Sequence[Outcome], attack: str, usual: tuple[int, ...], keys: Sequence[str]
) -> Record:
    """Main effects of the row, where there are several, and of every setting that all candidates have.

    Candidates that lack one of the `usual` seeds have no part in them.
    """
    candidates = [one for one in candidates if one.ran(attack, usual)]
    values = {"row": [one.row for one in candidates]}
    values |= {
        key: [one.settings[key] for one in candidates]
        for key in keys
        if all(key in one.settings for one in candidates)
    }
    grouped = {key: levels(found) for key, found in values.items()}
    grouped = {key: found for key, found in grouped.items() if len(found.names) > 1}
    if not grouped:
        return {"settings": [], "crossed": False}
    table = np.stack([one.values(attack, usual) for one in candidates])
    found = main_effects(np.column_stack([g.index for g in grouped.values()]), table)
    settings = []
    for (key, group), effects, degrees in zip(
        grouped.items(), found.effects, found.degrees_of_freedom, strict=True
    ):
        members = [
            [one for one, place in zip(candidates, group.index, strict=True) if place == number]
            for number in range(len(group.names))
        ]
        settings.append(
            {
                "setting": key,
                "separable": effects is not None,
                "degrees_of_freedom": degrees,
                "levels": [
                    {
                        "value": name,
                        "configurations": len(inside),
                        "effect": None if effects is None else as_json(effects[number]),
                        "time": float(np.mean([one.seconds["total"] for one in inside])),
                    }
                    for number, (name, inside) in enumerate(zip(group.names, members, strict=True))
                ],
            }
        )
    return {"settings": settings, "crossed": found.crossed}


def _export(name: str, entries: list[Record], runs: Place) -> str | None:
    """The command that makes the recommended trial a preset; None where no folder is at hand."""
    entry = next(entry for entry in entries if entry["name"] == name)
    if "://" in entry["source"]:
        return None
    trial, folder = entry["trials"][0], Path(entry["source"])
    option = "" if runs == Path("runs") else f" --runs {runs}"
    if Path(trial).is_absolute() or folder != runs / trial:
        trial, option = folder.name, f" --runs {folder.parent}"
    return f"ssat export {trial} --out {folder.name}.yaml{option}"


def _warnings(
    reading: Reading,
    outcomes: Sequence[Outcome],
    keys: Sequence[str],
    usual: tuple[int, ...],
    question: Question,
) -> list[str]:
    found = []
    missing = len(reading.outcomes) - len(outcomes)
    if missing:
        found.append(f"{missing} outcomes have no {question.attack} accuracy and are left out")
    other = [key for key in keys if key.startswith(TEST)]
    if other:
        found.append(
            f"the outcomes differ in {', '.join(other)}: their accuracies are not of the same test"
        )
    if len({one.test_set for one in outcomes} - {None}) > 1 and not other:
        found.append("the outcomes are of different test images, so they are paired by seed alone")
    candidates = [one for one in outcomes if one.candidate]
    for key in keys:
        rows = sorted({one.row for one in candidates if key not in one.settings})
        if rows and any(key in one.settings for one in candidates):
            found.append(
                f"{key} is no setting of {', '.join(rows)}, so its effect is not worked out"
            )
    machines = {machine for one in outcomes for machine in one.machines}
    if len(machines) > 1:
        found.append(
            f"seconds are of {len(machines)} machines and not comparable across them (--by images does "
            "not look at them): " + "; ".join(sorted(machines))
        )
    workers = sorted({size for one in outcomes for size in one.world_sizes})
    if len(workers) > 1:
        found.append(
            f"trainings had {', '.join(map(str, workers))} workers: their seconds are not comparable"
        )
    others = sum(not one.ran(question.attack, usual) for one in outcomes)
    if others:
        found.append(
            f"{others} outcomes lack one of the seeds {', '.join(map(str, usual))}, which most have: "
            "differences use those that both have, but these are on no front, in no effect and not called "
            "the best"
        )
    stopped = sum(one.status == "stopped" for one in reading.unfinished)
    if stopped:
        found.append(
            f"{stopped} trials were stopped early and have no part in the effects, which are of those that "
            "did well enough to go on"
        )
    texts: dict[str, list[str]] = {}
    for name, line in reading.warnings:
        texts.setdefault(line, []).append(name)
    for line, names in texts.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        found.append(f"{', '.join(names[:3])}{more}: {line}")
    return found
