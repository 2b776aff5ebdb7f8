"""What a comparison says, on an invented sweep: against scipy and brute force, from results.json and flags alone."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from ssat_ray.comparison.analysis import COSTS, Question, analyse
from ssat_ray.comparison.differences import difference, pooled_noise
from ssat_ray.comparison.naming import name_outcomes, varied
from ssat_ray.comparison.outcomes import Reading, Unfinished
from ssat_ray.comparison.sources import read_sources
from ssat_ray.comparison.statistics import difference_interval, image_variance
from ssat_ray.errors import UserError


@pytest.fixture(scope="module")
def reading(invented: Any) -> Reading:
    return read_sources(["grid"], invented.runs)


@pytest.fixture(scope="module")
def content(reading: Reading, invented: Any) -> dict[str, Any]:
    return analyse(reading, Question(watts=200.0, price=0.3, runs=invented.runs))


def named(content: dict[str, Any], name: str) -> dict[str, Any]:
    return next(entry for entry in content["outcomes"] if entry["name"] == name)


def test_outcomes_are_named_by_the_settings_that_they_depend_on(content: dict[str, Any]) -> None:
    names = {entry["name"] for entry in content["outcomes"]}
    expected = {f"lcs-km k={k} ratio={r}" for k in (5, 10, 20) for r in (0.1, 0.4)}
    assert names == expected | {"random ratio=0.1", "random ratio=0.4", "full"}
    assert content["settings"] == ["cluster.k", "select.ratio"]


def test_names_stay_unique(outcome: Any) -> None:
    same = {"cluster.k": 5, "select.ratio": 0.1}
    ones = [
        outcome("pcs", 1.0, settings={**same, "train.lr": 0.1}, trials=("a",)),
        outcome("pcs", 2.0, settings={**same, "train.lr": 0.1}, trials=("b",)),
        outcome("pcs", 3.0, settings={**same, "pretrain.lr": 0.1}, trials=("b",), source="x"),
        outcome("pcs", 3.0, settings={**same, "pretrain.lr": 0.2}, trials=("b",), source="y"),
    ]
    keys = varied(ones)
    assert keys == ("pretrain.lr",)
    assert name_outcomes(ones[:2], ()) == ["pcs (a)", "pcs (b)"]
    found = name_outcomes(ones, ("train.lr", "pretrain.lr"))
    assert found[2:] == ["pcs pretrain.lr=0.1", "pcs pretrain.lr=0.2"]
    assert found[:2] == ["pcs train.lr=0.1 (a)", "pcs train.lr=0.1 (b)"]
    many = tuple(f"train.x{i}" for i in range(5))
    assert name_outcomes(ones, many) == [
        "pcs (a)",
        "pcs (b) [runs]",
        "pcs (b) [x]",
        "pcs (b) [y]",
    ]
    assert name_outcomes([ones[3]] * 2, keys) == [
        "pcs lr=0.2 (b) [y] #1",
        "pcs lr=0.2 (b) [y] #2",
    ]


def test_settings_of_the_sweep_come_first(outcome: Any) -> None:
    a = outcome("pcs", 1.0, settings={"b": 1, "a": 1, "z": [1], "same": 0, "own": 1})
    b = outcome("pcs", 1.0, settings={"b": 2, "a": 2, "z": [2], "same": 0})
    assert varied([a, b], ("z", "same", "b")) == ("z", "b", "a")


def test_differences_are_paired_by_seed_and_image(
    content: dict[str, Any], reading: Reading, invented: Any
) -> None:
    """From the files alone: accuracies by seed, flags, and the residual of the whole table."""
    results = {
        path.parent.name: json.loads(path.read_text())
        for path in (invented.runs / "grid").glob("*/results.json")
    }
    rows = {(t, row["row"]): row for t, content in results.items() for row in content["rows"]}
    trials = [f"k{k}r{r}" for k in (5, 10, 20) for r in (10, 40)]
    unique = [(t, "lcs-km") for t in trials] + [(t, "random") for t in trials[:2]]
    unique.append((trials[0], "full"))
    table = np.array([rows[key]["accuracy"]["pgd"]["by_seed"] for key in unique])
    rest = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    variance, degrees = (rest**2).sum() / 8, 8
    assert content["noise"]["degrees_of_freedom"] == degrees
    assert content["noise"]["points"] == pytest.approx(variance**0.5)
    own = next(o for o in reading.outcomes if "grid/k20r40" in o.trials and o.row == "lcs-km")
    other = next(o for o in reading.outcomes if "grid/k20r40" in o.trials and o.row == "random")
    flags = [one.load_flags("pgd", (0, 1)) for one in (own, other)]
    assert flags[0] is not None and flags[1] is not None
    images = image_variance(flags[0], flags[1])
    assert images > 0
    by_seed = np.array([f.mean(1) * 100 for f in flags])
    mean = (by_seed[0] - by_seed[1]).mean()
    half = (
        stats.t.ppf(0.975, degrees) ** 2 * 2 * variance / 2 + stats.norm.ppf(0.975) ** 2 * images
    ) ** 0.5
    found = named(content, "lcs-km k=20 ratio=0.4")["differences"]["random"]
    assert (found["mean"], found["low"], found["high"]) == pytest.approx(
        (mean, mean - half, mean + half)
    )
    assert found["over"] == ["seeds", "images"] and found["seeds"] == [0, 1]
    alone = stats.ttest_rel(*by_seed).confidence_interval(0.95)
    assert (found["alone"]["low"], found["alone"]["high"]) == pytest.approx(alone)


def test_baselines_are_those_of_the_same_run(content: dict[str, Any]) -> None:
    for k, ratio in itertools.product((5, 10, 20), (0.1, 0.4)):
        entry = named(content, f"lcs-km k={k} ratio={ratio}")
        other = named(content, f"random ratio={ratio}")
        expected = entry["pgd"]["mean"] - other["pgd"]["mean"]
        assert entry["differences"]["random"]["mean"] == pytest.approx(expected)
        full = entry["pgd"]["mean"] - named(content, "full")["pgd"]["mean"]
        assert entry["differences"]["full"]["mean"] == pytest.approx(full)
    assert set(named(content, "random ratio=0.1")["differences"]) == {"full"}
    assert named(content, "full")["differences"] == {}, "it has two of them"


def test_seeds_that_would_settle_a_difference_do(content: dict[str, Any], reading: Reading) -> None:
    noise = pooled_noise(reading.outcomes, "pgd")
    assert noise is not None
    open_ones = [
        d for e in content["outcomes"] for d in e["differences"].values() if d["seeds_needed"]
    ]
    assert open_ones
    for found in open_ones:
        needed = found["seeds_needed"]
        images = 0.0
        if "images" in found["over"]:
            own = (found["high"] - found["mean"]) ** 2
            own -= stats.t.ppf(0.975, 8) ** 2 * noise.variance
            images = own / stats.norm.ppf(0.975) ** 2
        for seeds, settled in ((needed, True), (needed - 1, False)):
            if seeds <= len(found["seeds"]):
                continue
            interval = difference_interval(
                np.full(seeds, found["mean"]),
                np.zeros(seeds),
                noise=replace(noise, degrees_of_freedom=noise.degrees(seeds)),
                image_variance=images,
            )
            assert bool(interval.settled) == settled


def test_fronts_by_brute_force(content: dict[str, Any]) -> None:
    entries = content["outcomes"]
    for fronts in (*((cost,) for cost in COSTS), COSTS):
        name = fronts[0] if len(fronts) == 1 else "all"
        for entry in entries:
            point = [*(entry[c] for c in fronts), -entry["pgd"]["mean"]]
            others = [[*(e[c] for c in fronts), -e["pgd"]["mean"]] for e in entries]
            beaten = any(
                all(x <= y for x, y in zip(o, point, strict=True)) and o != point for o in others
            )
            assert (name in entry["fronts"]) == (not beaten)


def test_effects_are_those_of_the_swept_settings(content: dict[str, Any]) -> None:
    effects = {effect["setting"]: effect for effect in content["effects"]["settings"]}
    assert set(effects) == {"cluster.k", "select.ratio"} and content["effects"]["crossed"]
    entries = [entry for entry in content["outcomes"] if entry["candidate"]]
    grand = np.mean([entry["pgd"]["mean"] for entry in entries])
    for level in effects["cluster.k"]["levels"]:
        inside = [e for e in entries if str(e["settings"]["cluster.k"]) == level["value"]]
        assert level["configurations"] == len(inside) == 2
        mean = np.mean([e["pgd"]["mean"] for e in inside])
        assert level["effect"]["mean"] == pytest.approx(mean - grand)
        assert level["time"] == pytest.approx(np.mean([e["time"] for e in inside]))
    assert [level["value"] for level in effects["select.ratio"]["levels"]] == ["0.1", "0.4"]
    assert effects["select.ratio"]["levels"][1]["effect"]["mean"] > 0
    assert [effect["degrees_of_freedom"] for effect in effects.values()] == [2, 1]


def test_energy_and_cost_follow_the_time(content: dict[str, Any], reading: Reading) -> None:
    for entry in content["outcomes"]:
        assert entry["kwh"] == pytest.approx(200 * entry["time"] / 3.6e6)
        assert entry["cost"] == pytest.approx(0.3 * entry["kwh"])
        assert entry["gpu_hours"] == 0
    assert reading.spent is not None
    total = sum(reading.spent.values())
    assert content["spent"]["seconds"] == pytest.approx(total)
    assert content["spent"]["cost"] == pytest.approx(0.3 * 200 * total / 3.6e6)
    without = analyse(reading, Question())
    assert without["outcomes"][0]["kwh"] is None and without["spent"]["cost"] is None


def test_the_recommended_is_the_cheapest_not_significantly_below_the_best(
    content: dict[str, Any], reading: Reading
) -> None:
    for by in COSTS:
        found = analyse(reading, Question(by=by))
        entries = {e["name"]: e for e in found["outcomes"] if e["candidate"]}
        best = max(entries.values(), key=lambda e: e["pgd"]["mean"])
        assert found["recommended"]["best"] == best["name"] and best["to_best"] is None
        good = [e for e in entries.values() if e is best or e["to_best"]["high"] >= 0]
        cheapest = min(good, key=lambda e: (e[by], -e["pgd"]["mean"]))
        assert found["recommended"]["name"] == cheapest["name"]
        assert found["recommended"]["below"] == len(entries) - len(good)


def test_the_choice_of_the_validation_images_stands_beside(
    content: dict[str, Any], reading: Reading
) -> None:
    by_validation = analyse(reading, Question(attack="validation"))["recommended"]
    assert content["recommended"]["by_validation"] == by_validation["name"]
    assert (
        "the test images choose nothing (--attack validation)"
        in content["recommended"]["reason"][-1]
    )
    assert by_validation["by_validation"] is None
    without = replace(reading.outcomes[0], accuracy={"pgd": reading.outcomes[0].accuracy["pgd"]})
    some = replace(reading, outcomes=(without, *reading.outcomes[1:]))
    assert analyse(some, Question())["recommended"]["by_validation"] is None


def test_the_command_names_the_trial(
    content: dict[str, Any], reading: Reading, invented: Any
) -> None:
    name = content["recommended"]["name"]
    trial = named(content, name)["trials"][0].removeprefix("grid/")
    command = content["recommended"]["export"]
    assert command == f"ssat export grid/{trial} --out {trial}.yaml --runs {invented.runs}"
    by_path = read_sources([str(invented.runs / "grid")], Path("runs"))
    expected = f"ssat export {trial} --out {trial}.yaml --runs {invented.runs / 'grid'}"
    assert analyse(by_path, Question())["recommended"]["export"] == expected


def test_all_of_it_is_json(content: dict[str, Any]) -> None:
    again = json.loads(json.dumps(content, allow_nan=False))
    assert again["recommended"]["name"] == content["recommended"]["name"]
    assert again["unfinished"][0]["status"] == "failed"


def test_rows_of_one_run_are_compared_too(invented: Any) -> None:
    found = analyse(read_sources(["plain"], invented.runs), Question())
    names = [entry["name"] for entry in found["outcomes"]]
    assert names == ["pcs", "lcs-km", "none", "random", "full"]
    (effect,) = found["effects"]["settings"]
    assert effect["setting"] == "row" and len(effect["levels"]) == 2
    assert found["recommended"]["name"] in ("pcs", "lcs-km")
    assert set(found["outcomes"][0]["differences"]) == {"none", "random", "full"}
    assert set(found["outcomes"][4]["differences"]) == {"none", "random"}


def test_baselines_are_recommended_where_there_is_nothing_else(outcome: Any, invented: Any) -> None:
    reading = read_sources(["plain"], invented.runs)
    rows = [one for one in reading.outcomes if one.row in ("none", "full")]
    with pytest.raises(UserError, match="nothing that could be recommended has it"):
        analyse(replace(reading, outcomes=tuple(rows)), Question())
    again = replace(reading, outcomes=tuple(replace(one, candidate=True) for one in rows))
    assert analyse(again, Question())["recommended"]["candidates"] == 2


def test_another_attack_counts_where_it_was_measured(invented: Any) -> None:
    reading = read_sources(["grid", "attacked"], invented.runs)
    found = analyse(reading, Question(attack="autoattack"))
    assert found["attack_name"] == "AutoAttack" and len(found["outcomes"]) == 3
    assert any("6 outcomes have no autoattack accuracy" in line for line in found["warnings"])
    assert found["noise"] is None
    (chosen,) = (e for e in found["outcomes"] if e["candidate"])
    assert chosen["differences"]["random"]["over"] == ["images"], "one seed: images alone"
    with pytest.raises(UserError, match="measured are apgd-ce, clean, pgd"):
        analyse(read_sources(["grid"], invented.runs), Question(attack="autoattack"))


def test_validation_may_choose_instead_of_the_test_images(reading: Reading) -> None:
    found = analyse(reading, Question(attack="validation"))
    entries = [entry for entry in found["outcomes"] if entry["candidate"]]
    best = max(entries, key=lambda e: np.mean(e["accuracy"]["validation"]["by_seed"]))
    assert found["recommended"]["best"] == best["name"]
    assert found["attack_name"] == "validation PGD"
    assert best["differences"]["random"]["over"] == ["seeds"], "there are no flags"
    assert "pgd" in best["accuracy"]


def test_warnings_say_what_makes_a_comparison_doubtful(outcome: Any) -> None:
    def about(*outcomes: Any, **more: Any) -> str:
        return "\n".join(analyse(Reading(outcomes=outcomes, **more), Question())["warnings"])

    a = outcome("pcs", 80.0, 81.0, machines=("A",), test_set="x", settings={"threat.eps": 0.1})
    b = outcome("pcs", 79.0, 82.0, machines=("B",), test_set="y", settings={"threat.eps": 0.2})
    assert "differ in threat.eps: their accuracies are not of the same test" in about(a, b)
    assert "2 machines and not comparable across them (--by images" in about(a, b)
    more = replace(a, world_sizes=(8,), settings={})
    assert "trainings had 1, 8 workers" in about(more, replace(a, world_sizes=(1,), settings={}))
    assert "different test images" in about(a, replace(b, settings=a.settings))
    assert "1 outcomes lack one of the seeds 0, 1, which most have" in about(
        a, b, outcome("pcs", 79.0)
    )
    stopped = tuple(Unfinished(f"trial{i}", {}, "stopped", "") for i in range(3))
    assert "3 trials were stopped early" in about(a, unfinished=stopped)
    assert about(a, replace(b, settings=a.settings, test_set="x", machines=("A",))) == ""
    k = [replace(a, settings={**a.settings, "cluster.k": k}, row="lcs-km") for k in (5, 9)]
    assert "cluster.k is no setting of pcs, so its effect is not worked out" in about(a, *k)
    told = tuple((f"run{i}", "masked") for i in range(5))
    assert "run0, run1, run2 and 2 more: masked" in about(a, warnings=told)


def test_an_outcome_of_one_lucky_seed_moves_nothing(outcome: Any) -> None:
    """It is not the best, on no front, in no effect, and leaves the others' intervals as they are."""
    ks = [
        outcome("lcs-km", value, value + 1.3 - k / 20, settings={"cluster.k": k})
        for k, value in ((5, 79.0), (10, 80.5), (20, 80.0))
    ]
    lucky = outcome("lcs-km", 99.0, settings={"cluster.k": 10}, seconds={"total": 1.0})
    alone = analyse(Reading(outcomes=tuple(ks)), Question())
    beside = analyse(Reading(outcomes=(*ks, lucky)), Question())
    assert beside["noise"] == pytest.approx(alone["noise"])
    assert alone["noise"]["degrees_of_freedom"] == 2
    assert beside["effects"] == alone["effects"]
    assert beside["recommended"]["best"].startswith(alone["recommended"]["best"])
    assert beside["recommended"]["best"] != beside["outcomes"][3]["name"]
    assert beside["outcomes"][3]["fronts"] == []
    for found, expected in zip(beside["outcomes"], alone["outcomes"], strict=False):
        assert found["fronts"] == expected["fronts"]
        if expected["to_best"] is not None:
            assert found["to_best"]["low"] == pytest.approx(expected["to_best"]["low"])


def test_further_seeds_of_some_make_them_no_better_and_no_worse(outcome: Any) -> None:
    """Which is what a comparison asks for where two seeds settle nothing; ranked are the seeds that all have."""
    ks = [
        outcome("lcs-km", *values, settings={"cluster.k": k})
        for k, values in ((5, (79.0, 80.0)), (10, (90.0, 90.5, 60.0)), (20, (80.0, 81.2)))
    ]
    content = analyse(Reading(outcomes=tuple(ks)), Question())
    assert content["recommended"]["best"] == "lcs-km k=10"
    assert content["outcomes"][1]["fronts"] and "lack" not in "".join(content["warnings"])
    assert len(content["effects"]["settings"][0]["levels"]) == 3
    cheap = outcome("lcs-km", 60.0, 60.5, 60.2, 60.1, settings={"cluster.k": 5})
    dear = outcome("lcs-km", 80.0, 81.0, settings={"cluster.k": 9}, seconds={"total": 99.0})
    assert analyse(Reading(outcomes=(cheap, dear)), Question())["recommended"]["best"] == (
        "lcs-km k=9"
    )


def test_no_seed_in_common_makes_nothing_the_highest(outcome: Any) -> None:
    apart = [
        replace(
            outcome("lcs-km", settings={"cluster.k": k}),
            seeds=tuple(by_seed),
            accuracy={"pgd": by_seed},
        )
        for k, by_seed in ((5, {0: 70.0, 1: 71.0}), (9, {2: 90.0}))
    ]
    content = analyse(Reading(outcomes=tuple(apart)), Question())
    assert "highest" not in content["recommended"]["reason"][0]
    assert content["noise"] is None


def test_with_one_seed_nothing_is_settled_and_only_the_best_is_named(
    outcome: Any, tmp_path: Path
) -> None:
    """Even where the test images tell two classifiers apart: another training may turn them round."""
    flags = np.arange(400) < 320, np.arange(400) < 100
    made = []
    for number, correct in enumerate(flags):
        path = tmp_path / f"{number}.npy"
        np.save(path, correct)
        about = {"flags": {("pgd", 0): path}, "test_set": "x", "settings": {"cluster.k": number}}
        made.append(outcome("lcs-km", 100 * correct.mean(), **about))
    cheap = replace(made[1], seconds={"total": 1.0})
    content = analyse(Reading(outcomes=(made[0], cheap)), Question())
    found = content["outcomes"][1]["to_best"]
    assert found["over"] == ["images"] and found["high"] < 0 and found["settled"] == 0
    assert content["recommended"]["name"] == content["recommended"]["best"]
    assert content["recommended"]["below"] == 0
    assert "Nothing says how far chance moves it" in content["recommended"]["reason"][0]


def test_outcomes_without_a_common_seed_are_not_paired(outcome: Any) -> None:
    a = outcome("pcs", 80.0, 81.0)
    b = replace(outcome("pcs", 80.0), accuracy={"pgd": {7: 80.0}}, seeds=(7,))
    assert difference(a, b, "pgd", None) is None
    assert pooled_noise([a, b], "pgd") is None
    assert analyse(Reading(outcomes=(a, b)), Question())["recommended"]["below"] == 0


def test_a_training_read_twice_counts_once_in_the_noise(outcome: Any) -> None:
    ones = [outcome("pcs", 80.0, 81.0), outcome("pcs", 79.0, 82.5), outcome("easy", 78.0, 78.5)]
    twice = [*ones, replace(ones[0], seconds={"total": 1.0})]
    assert pooled_noise(twice, "pgd") == pooled_noise(ones, "pgd")
    longer = outcome("pcs", 80.0, 81.0, 80.4)
    assert pooled_noise([ones[0], longer], "pgd") is None
    with_both, with_it = (
        pooled_noise([*more, *ones[1:]], "pgd") for more in ([longer, ones[0]], [longer])
    )
    assert with_both == with_it


def test_costs_that_nobody_recorded(outcome: Any) -> None:
    a = outcome("pcs", 80.0, 81.0, peak_memory=None, labelled=None)
    reading = Reading(outcomes=(a,))
    assert analyse(reading, Question())["outcomes"][0]["fronts"] == ["time"]
    with pytest.raises(UserError, match="--by memory: no source says the peak memory"):
        analyse(reading, Question(by="memory"))
