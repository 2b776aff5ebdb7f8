"""The reason in words: every case of what seeds settle and what they leave open."""

from __future__ import annotations

from typing import Any

import pytest

from ssat_ray.comparison.recommendation import by_validation, recommend
from ssat_ray.comparison.words import accuracy_text, noise_text, points, seeds_text, spent_text


def against(mean: float, half: float | None, needed: int | None = None, **more: Any) -> Any:
    low, high = (None, None) if half is None else (mean - half, mean + half)
    settled = 0 if low is None or high is None else int(low > 0) - int(high < 0)
    over = [] if half is None else ["seeds"]
    about = {"mean": mean, "low": low, "high": high, "settled": settled, "over": over}
    return {**about, "seeds_needed": needed, **more}


def entry(name: str, mean: float, time: float, to_best: Any = None, **more: Any) -> Any:
    accuracy = {"pgd": {"name": "PGD-40", "mean": mean, "seeds": [0, 1]}}
    about = {
        "name": name,
        "row": name.split()[0],
        "candidate": True,
        "trials": [name],
        "pgd": {"mean": mean, "low": mean - 1, "high": mean + 1},
        "accuracy": accuracy,
        "time": time,
        "images": 100 * time,
        "memory": 2**20 * time,
        "to_best": to_best,
        "settings": {},
        "differences": {},
        "lower_bounds": [],
    }
    return about | more


def reason(entries: list[Any], best: str, by: str = "time") -> tuple[str, str]:
    found = recommend(entries, best, by, "pgd")
    return found["name"], " ".join(found["reason"])


BEST = entry("pcs a", 83.0, 600.0)


def test_the_cheapest_that_is_not_shown_to_be_worse() -> None:
    entries = [
        BEST,
        entry("pcs b", 82.1, 120.0, against(-0.9, 1.4, 9)),
        entry("pcs c", 78.0, 60.0, against(-5.0, 1.4)),
        entry("pcs d", 82.0, 300.0, against(-1.0, 1.4)),
    ]
    name, said = reason(entries, "pcs a")
    assert name == "pcs b"
    assert "least total time of the 3 of 4 configurations" in said
    assert "82.1 % against 83.0 % of pcs a, −0.9 points [−2.3, +0.5], with 2 min 00 s" in said
    assert "up to 2.3 points below pcs a; about 9 seeds would settle it, at even odds." in said
    assert "1 of 4 is significantly below the best" in said
    assert "AutoAttack has not attacked it." in said


def test_by_other_costs() -> None:
    entries = [BEST, entry("pcs b", 82.1, 120.0, against(-0.9, 1.4))]
    assert "least number of images" in reason(entries, "pcs a", "images")[1]
    assert "12\u202f000 images instead of" in reason(entries, "pcs a", "images")[1]
    assert "120 MiB instead of 600 MiB" in reason(entries, "pcs a", "memory")[1]


def test_a_near_tie_in_time_is_decided_by_the_images() -> None:
    """pcs d takes 6 % more than the least time, pcs e is shown to be worse."""
    entries = [
        BEST,
        entry("pcs b", 82.1, 100.0, against(-0.9, 1.4, 9), images=3000),
        entry("pcs c", 82.4, 104.0, against(-0.6, 1.4, 9), images=2000),
        entry("pcs d", 82.4, 106.0, against(-0.6, 1.4, 9), images=1000),
        entry("pcs e", 70.0, 101.0, against(-13.0, 1.4), images=1000),
    ]
    name, said = reason(entries, "pcs a")
    assert name == "pcs c"
    assert "pcs c has the fewest images within 5 % of the least total time of the 4 of 5" in said
    tie = "no interval, and that of pcs b is within 5 % of the least too: among these the number of images decided."
    assert tie in said
    assert reason(entries, "pcs a", "images")[0] == "pcs d"
    assert "no interval" not in reason(entries, "pcs a", "images")[1]
    assert "no interval" not in reason([BEST, entries[1], entries[3]], "pcs a")[1]


def test_a_near_tie_in_time_with_as_many_images_is_decided_by_the_accuracy() -> None:
    entries = [
        BEST,
        entry("pcs b", 82.1, 100.0, against(-0.9, 1.4, 9), images=3000),
        entry("pcs c", 82.4, 104.0, against(-0.6, 1.4, 9), images=3000),
    ]
    name, said = reason(entries, "pcs a")
    assert name == "pcs c" and "pcs c has the fewest images within 5 % of the least" in said
    assert "the number of images decided, and then the accuracy, as pcs b has as few." in said
    assert reason(entries, "pcs a", "images")[0] == "pcs c"


def test_a_baseline_that_is_no_worse_for_no_more_is_named_at_once() -> None:
    chosen = entry("pcs b", 82.1, 120.0, against(-0.9, 1.4, 9))
    random = entry("random r", 82.4, 110.0, candidate=False, trials=["elsewhere"])
    dear = entry("full", 85.0, 900.0, candidate=False, trials=["elsewhere"])
    first = recommend([BEST, chosen, random, dear], "pcs a", "time", "pgd")["reason"][0]
    assert first.endswith(
        "But random r has 82.4 %, for no more: 1 min 50 s, with 11\u202f000 images."
    )
    by_images = recommend([BEST, chosen, random], "pcs a", "images", "pgd")["reason"][0]
    assert by_images.endswith("has 82.4 %, for no more: 11\u202f000 images.")
    turned, other = (
        {**random, "accuracy": {"pgd": {**random["accuracy"]["pgd"], "seeds": seeds}}}
        for seeds in ([1, 0], [0])
    )
    assert "But" in recommend([BEST, chosen, turned], "pcs a", "time", "pgd")["reason"][0]
    easier = {**random, "settings": {"threat.eps": 0.01}}
    for without in ([BEST, chosen, dear], [BEST, chosen, other], [BEST, chosen, easier]):
        assert "But" not in recommend(without, "pcs a", "time", "pgd")["reason"][0]


def test_a_time_that_was_cut_short_is_a_lower_bound_in_the_reason_too() -> None:
    chosen = entry("pcs b", 82.1, 120.0, against(-0.9, 1.4, 9), lower_bounds=[1])
    assert "with ≥ 2 min 00 s instead of 10 min 00 s" in reason([BEST, chosen], "pcs a")[1]
    assert "≥" not in reason([BEST, chosen], "pcs a", "images")[1]


def test_what_the_validation_images_would_choose_is_said_beside() -> None:
    entries = [BEST, entry("pcs b", 82.1, 120.0, against(-0.9, 1.4, 9))]
    found = recommend(entries, "pcs a", "time", "pgd")
    said = by_validation(found, {"name": "pcs a"}, entries, "pgd")
    assert "it would be pcs a, with 83.0 % PGD-40 accuracy and 10 min 00 s." in said
    assert by_validation(found, found, entries, "pgd").endswith("it would be the same.")


def test_nothing_is_significantly_below() -> None:
    entries = [BEST, entry("pcs b", 80.0, 120.0, against(-3.0, 9.0, 21))]
    name, said = reason(entries, "pcs a")
    assert name == "pcs b"
    assert "None of the 2 is significantly below the best: these seeds hardly tell them" in said


def test_the_best_is_the_cheapest_too() -> None:
    dear = entry("pcs b", 82.0, 900.0, against(-1.0, 2.0))
    assert (
        "both the highest PGD-40 accuracy, 83.0 %, and the least total time"
        in (reason([BEST, dear], "pcs a")[1])
    )
    worse = entry("pcs b", 80.0, 10.0, against(-3.0, 2.0))
    name, said = reason([BEST, worse], "pcs a")
    assert name == "pcs a" and "no other comes within what the seeds leave open" in said


def test_without_intervals_only_the_best_can_be_named() -> None:
    cheap = entry("pcs b", 82.9, 10.0, against(-0.1, None))
    name, said = reason([BEST, cheap], "pcs a")
    assert name == "pcs a" and "Nothing says how far chance moves it" in said
    of_images = against(-0.1, 0.5, over=["images"])  # of one seed: it says nothing about training
    assert reason([BEST, {**cheap, "to_best": of_images}], "pcs a")[0] == "pcs a"
    unpaired = entry("pcs c", 82.9, 10.0, None)
    assert reason([BEST, unpaired], "pcs a")[0] == "pcs a"
    assert reason([BEST], "pcs a")[1].startswith("pcs a is the only candidate, at 83.0 %")


@pytest.mark.parametrize(
    ("difference", "said"),
    [
        (against(0.2, 2.0, 40), "+0.2 points [−1.8, +2.2], not settled; about 40 seeds"),
        (against(3.0, 2.0), "+3.0 points [+1.0, +5.0], better (10 min 00 s against 5 min 00 s)."),
        (against(-3.0, 2.0), "worse"),
    ],
)
def test_against_random(difference: Any, said: str) -> None:
    random = entry("random", 82.8, 300.0, candidate=False, trials=["pcs a"])
    own = {**BEST, "differences": {"random": difference}}
    found = reason([own, random], "pcs a")[1]
    assert f"Against random: {said}" in found or said in found
    doubt = "does not show that choosing images pays over drawing them"
    assert (doubt in found) == (difference["settled"] <= 0)


def test_autoattack_is_told_with_its_seeds() -> None:
    accuracy = {
        **BEST["accuracy"],
        "autoattack": {"name": "AutoAttack", "mean": 79.2, "seeds": [0]},
    }
    assert (
        "AutoAttack accuracy: 79.2 % (seed 0)."
        in (reason([{**BEST, "accuracy": accuracy}], "pcs a")[1])
    )


def test_small_words() -> None:
    assert points(against(1.0, None)) == "+1.0 points (no interval)"
    assert seeds_text(against(1.0, None)) == "a second seed would say how far it is from settled"
    assert seeds_text(against(1.0, 2.0)) == "no number of seeds in reach would settle it"
    both = against(1.0, 2.0, over=["seeds", "images"])
    assert seeds_text(both) == "more seeds alone would not settle it on these test images"
    needed = seeds_text(against(1.0, 2.0, 1200))
    assert needed == "about 1,200 seeds would settle it, at even odds"
    assert accuracy_text({"mean": 80.0, "low": None, "high": None}) == "80.0"
    assert spent_text(200.0, 0.1234, 0.05) == "3 min 20 s, 0.123 kWh, cost 0.05"
    assert spent_text(200.0, None, None) == "3 min 20 s"
    assert "none is settled" in noise_text(None)
    noise = {"points": 0.512, "degrees_of_freedom": 8, "outcomes": 9, "seeds": 2}
    assert "8 degrees of freedom: the spread of 0.51 points" in noise_text(noise)
