"""What the recommendation, the table and the page share: costs, differences and seeds as a person reads them."""

from __future__ import annotations

from typing import Any

from ssat_ray.report.words import count, duration, signed, size

Record = dict[str, Any]
IN_WORDS = {"time": "total time", "images": "number of images", "memory": "peak memory"}


def cost_text(value: float | None, by: str) -> str:
    """A cost for people."""
    if by == "time":
        return duration(value)
    return f"{count(value)} images" if by == "images" else size(value)


def cost_of(entry: Record, by: str) -> str:
    """A cost of an outcome for people; ≥ before a time that `train.max_steps` cut short."""
    bound = "≥ " if by == "time" and entry["lower_bounds"] else ""
    return bound + cost_text(entry[by], by)


def points(difference: Record) -> str:
    """A difference in points with its 95 % interval: −0.9 points [−2.3, +0.5]."""
    text = f"{signed(difference['mean'])} points"
    if difference["low"] is None:
        return f"{text} (no interval)"
    return f"{text} [{signed(difference['low'])}, {signed(difference['high'])}]"


def seeds_text(difference: Record) -> str:
    """How many seeds would settle an undecided difference."""
    if difference["seeds_needed"] is not None:
        return f"about {count(difference['seeds_needed'], ',')} seeds would settle it, at even odds"
    if "seeds" not in difference["over"]:
        return "a second seed would say how far it is from settled"
    if "images" in difference["over"]:
        return "more seeds alone would not settle it on these test images"
    return "no number of seeds in reach would settle it"


def accuracy_text(accuracy: Record) -> str:
    """A mean accuracy in percent with its interval, where there is one: 83.2 [80.0, 86.0]."""
    text = f"{accuracy['mean']:.1f}"
    if accuracy["low"] is None:
        return text
    return f"{text} [{accuracy['low']:.1f}, {accuracy['high']:.1f}]"


def spent_text(seconds: float, kwh: float | None, cost: float | None) -> str:
    """Computing time with energy and cost, where these are known: 3 min 20 s, 0.12 kWh, cost 0.03."""
    more = [] if kwh is None else [f"{kwh:.3g} kWh"]
    more += [] if cost is None else [f"cost {cost:.3g}"]
    return ", ".join([duration(seconds), *more])


def noise_text(noise: Record | None) -> str:
    """What the intervals rest on."""
    if noise is None:
        return (
            "no two outcomes have two seeds in common, so nothing says how far training again would move a "
            "difference: none is settled, and its interval is over the test images alone, if there is one. An "
            "accuracy has that of its own seeds (Student's t)"
        )
    return (
        f"over seeds, Student's t with {noise['degrees_of_freedom']} degrees of freedom: the spread of "
        f"{noise['points']:.2g} points is pooled over {noise['outcomes']} outcomes x {noise['seeds']} seeds"
    )
