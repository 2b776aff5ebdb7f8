"""Which configuration to take: the cheapest whose accuracy is not significantly below the best one's; why."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ssat_ray.comparison.outcomes import TEST
from ssat_ray.comparison.words import IN_WORDS, cost_of, points, seeds_text
from ssat_ray.errors import UserError

Record = dict[str, Any]
NEAR = 0.05
"""Share by which times may differ for no other reason than when they were taken: nothing here measures it."""


def recommend(entries: Sequence[Record], best: str, by: str, attack: str) -> Record:
    """Choose among the candidates and say why.

    A candidate is out if the interval of its difference to the best one lies below 0, or if there is no
    interval over seeds, since then nothing says how far below it may be. Of those that are left and whose
    total time is within `NEAR` of the least, the one with the fewest images is taken, of equal ones the most
    accurate.

    Args:
        entries: of `analysis.analyse`, with `to_best`.
        best: name of the candidate with the highest mean accuracy.
        by: `time`, `images` or `memory`.
        attack: whose accuracy counts.

    Returns:
        `name`, `best`, `by`, `candidates` and `below` (numbers), and `reason`, a list of sentences.

    Raises:
        UserError: the cost of no eligible candidate is recorded.
    """
    candidates = [entry for entry in entries if entry["candidate"]]
    top = next(entry for entry in candidates if entry["name"] == best)
    compared = [e for e in candidates if _compared(e)]
    below = [e for e in compared if e["to_best"]["settled"] < 0]
    eligible = [top, *(e for e in compared if e not in below)]
    known = [entry for entry in eligible if entry[by] is not None]
    if not known:
        raise UserError(
            f"--by {by}: no source says the {IN_WORDS[by]} of what could be recommended."
        )
    near = _near(known, by)
    images = by == "time"  # which decides where the clock does not
    chosen = min(near, key=lambda e: (_images(e) if images else e[by], -e[attack]["mean"], e[by]))
    has = f"the least {IN_WORDS[by]}"
    if chosen[by] > min(entry[by] for entry in near):
        most = "highest accuracy" if chosen["images"] is None else "fewest images"
        has = f"the {most} within {100 * NEAR:.0f} % of {has}"
    choice = _choice(chosen, top, eligible, candidates, by, attack, has)
    reason = [
        " ".join([choice, *_rival(chosen, entries, by, attack)]),
        *_ties(chosen, near, by),
        *_doubt(chosen, top),
        *_spread(candidates, compared, below),
        *_against_baselines(chosen, entries, by),
        *_autoattack(chosen, attack),
    ]
    return {
        "name": chosen["name"],
        "best": best,
        "by": by,
        "candidates": len(candidates),
        "below": len(below),
        "reason": reason,
    }


def _choice(
    chosen: Record,
    top: Record,
    eligible: list[Record],
    candidates: list[Record],
    by: str,
    attack: str,
    has: str,
) -> str:
    """What it `has` that others have not."""
    name = chosen["accuracy"][attack]["name"]
    reached = f"{chosen[attack]['mean']:.1f} %"
    if len(candidates) == 1:
        return f"{chosen['name']} is the only candidate, at {reached} {name} accuracy."
    if len(eligible) == 1 and chosen is top:
        if not any(map(_compared, candidates)):
            return (
                f"{chosen['name']} is taken for its {name} accuracy, {reached}. Nothing says how far chance "
                "moves it: there is one seed, or none in common."
            )
        return (
            f"{chosen['name']} has the highest {name} accuracy of {len(candidates)}, {reached}; no other "
            "comes within what the seeds leave open."
        )
    among = (
        f"the {len(eligible)} of {len(candidates)} configurations whose {name} accuracy is not "
        "significantly below the best one's"
    )
    if chosen is top:
        return f"{chosen['name']} has both the highest {name} accuracy, {reached}, and {has} of {among}."
    return (
        f"{chosen['name']} has {has} of {among}: {reached} against "
        f"{top[attack]['mean']:.1f} % of {top['name']}, {points(chosen['to_best'])}, with "
        f"{cost_of(chosen, by)} instead of {cost_of(top, by)}."
    )


def _compared(entry: Record) -> bool:
    """Whether an interval over seeds says how far below the best it may be."""
    return entry["to_best"] is not None and "seeds" in entry["to_best"]["over"]


def _rival(chosen: Record, entries: Sequence[Record], by: str, attack: str) -> list[str]:
    """The most accurate baseline that costs no more and reaches no less, in the same test under the same seeds."""

    def test(entry: Record) -> tuple[Any, ...]:
        settings = {k: v for k, v in entry["settings"].items() if k.startswith(TEST)}
        return sorted(entry["accuracy"][attack]["seeds"]), settings

    rivals = [
        entry
        for entry in entries
        if not entry["candidate"]
        and entry[by] is not None
        and entry[by] <= chosen[by]
        and test(entry) == test(chosen)
        and entry[attack]["mean"] >= chosen[attack]["mean"]
    ]
    if not rivals:
        return []
    rival = max(rivals, key=lambda entry: float(entry[attack]["mean"]))
    costs = [cost_of(rival, by)]
    if by != "images" and rival["images"] is not None:
        costs.append(cost_of(rival, "images"))
    reached = f"{rival[attack]['mean']:.1f} %"
    return [f"But {rival['name']} has {reached}, for no more: {', with '.join(costs)}."]


def _near(known: list[Record], by: str) -> list[Record]:
    """Those that the cost does not tell apart: a time has no interval."""
    least = min(entry[by] for entry in known)
    limit = (1 + NEAR) * least if by == "time" else least
    return [entry for entry in known if entry[by] <= limit]


def _images(entry: Record) -> float:
    return math.inf if entry["images"] is None else float(entry["images"])


def _ties(chosen: Record, near: list[Record], by: str) -> list[str]:
    """Other choices that take about as long."""
    others = [entry for entry in near if entry is not chosen]
    if by != "time" or not others:
        return []
    text = (
        f"Total time has no interval, and that of {_names(others)} is within {100 * NEAR:.0f} % of the "
        "least too: among these "
    )
    if chosen["images"] is None:
        return [f"{text}the accuracy decided."]
    text += "the number of images decided"
    same = [entry for entry in others if _images(entry) == _images(chosen)]
    return [f"{text}, and then the accuracy, as {_names(same)} has as few." if same else f"{text}."]


def _names(entries: list[Record]) -> str:
    return ", ".join(entry["name"] for entry in entries[:3]) + (
        " and others" if entries[3:] else ""
    )


def by_validation(found: Record, other: Record, entries: Sequence[Record], attack: str) -> str:
    """What would be recommended if the test images had no part in it, beside what is.

    Args:
        found: of `recommend`, by the test images.
        other: the same by the validation images.
        entries: as for `recommend`.
        attack: whose accuracy on the test images counts.
    """
    text = "By the validation images, so that the test images choose nothing (--attack validation)"
    if other["name"] == found["name"]:
        return f"{text}, it would be the same."
    entry = next(entry for entry in entries if entry["name"] == other["name"])
    by = found["by"]
    return (
        f"{text}, it would be {entry['name']}, with {entry[attack]['mean']:.1f} % "
        f"{entry['accuracy'][attack]['name']} accuracy and {cost_of(entry, by)}."
    )


def _doubt(chosen: Record, top: Record) -> list[str]:
    """How much worse than the best it may be."""
    if chosen is top:
        return []
    difference = chosen["to_best"]
    worst = max(0.0, -difference["low"])
    return [
        f"It may be up to {worst:.1f} points below {top['name']}; {seeds_text(difference)}."
        if worst > 0
        else f"It is not below {top['name']} under the seeds that both have."
    ]


def _spread(candidates: list[Record], compared: list[Record], below: list[Record]) -> list[str]:
    if not compared:
        return []
    if not below:
        return [
            f"None of the {len(candidates)} is significantly below the best: these seeds hardly tell them "
            "apart, and the choice rests on cost."
        ]
    verb = "is" if len(below) == 1 else "are"
    return [
        f"{len(below)} of {len(candidates)} {verb} significantly below the best. The intervals are for one "
        "comparison at a time, and the best of many looks better than it is."
    ]


def _against_baselines(chosen: Record, entries: Sequence[Record], by: str) -> list[str]:
    """What `random` and `full` of the same run say."""
    found = []
    for row in ("random", "full"):
        difference = chosen["differences"].get(row)
        if difference is None:
            continue
        other = next(
            e for e in entries if e["row"] == row and set(e["trials"]) & set(chosen["trials"])
        )
        verdict = {1: "better", -1: "worse", 0: f"not settled; {seeds_text(difference)}"}
        text = f"Against {other['name']}: {points(difference)}, {verdict[difference['settled']]}"
        if other[by] is not None and chosen[by] is not None:
            text += f" ({cost_of(chosen, by)} against {cost_of(other, by)})"
        if row == "random" and difference["settled"] <= 0:
            text += ". So this does not show that choosing images pays over drawing them"
        found.append(f"{text}.")
    return found


def _autoattack(chosen: Record, attack: str) -> list[str]:
    entry = chosen["accuracy"].get("autoattack")
    if attack == "autoattack":
        return []
    if entry is None:
        return ["AutoAttack has not attacked it."]
    seeds = entry["seeds"]
    which = f"seed{'' if len(seeds) == 1 else 's'} {', '.join(map(str, seeds))}"
    return [f"{entry['name']} accuracy: {entry['mean']:.1f} % ({which})."]
