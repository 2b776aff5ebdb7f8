"""The Bayesian search: Optuna's study as Ray Tune drives it, and what it knows after a restart."""

from __future__ import annotations

from typing import Any

import optuna
import pytest

from ssat_ray.sweeps.axis import Axis
from ssat_ray.sweeps.bayesian import distribution, search

SEARCH: dict[str, Any] = {
    "space": {
        "select.ratio": {"log_uniform": [0.05, 0.5]},
        "cluster.k": {"integer": [2, 40]},
        "embed.layer": ["pooled", "logits"],
    },
    "search": "bayesian",
    "trials": 10,
    "objectives": ["validation", "seconds", "images"],
}


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        (Axis(kind="choice", values=(1, "a", None)), {"choices": (1, "a", None)}),
        (Axis(kind="uniform", values=(0.1, 2)), {"low": 0.1, "high": 2, "log": False}),
        (Axis(kind="log_uniform", values=(0.1, 2)), {"low": 0.1, "high": 2, "log": True}),
        (Axis(kind="integer", values=(2, 9)), {"low": 2, "high": 9, "log": False}),
        (Axis(kind="log_integer", values=(2, 9)), {"low": 2, "high": 9, "log": True}),
    ],
)
def test_an_axis_in_optunas_terms(axis: Axis, expected: dict[str, Any]) -> None:
    found = distribution(axis)
    assert {name: getattr(found, name) for name in expected} == expected


def test_it_proposes_points_of_the_space_and_takes_what_they_achieve(invented: Any) -> None:
    record = invented.again(**SEARCH).record()
    searcher = search(record)
    for number in range(12):
        settings = searcher.suggest(str(number))
        point = record.space.point(settings)
        assert 0.05 <= point.config.select.ratio <= 0.5 and 2 <= point.config.cluster.k <= 40
        result = {"validation": 60.0 + number, "seconds": 100.0 - number, "images": 1000.0}
        searcher.on_trial_complete(str(number), {**result, "status": "finished"})
    study = searcher._ot_study
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 12
    assert [trial.number for trial in study.best_trials] == [11], "high, low and low are good"
    searcher.suggest("failing")
    searcher.on_trial_complete("failing", error=True)
    assert study.trials[-1].state.name == "FAIL"


def test_after_a_restart_it_knows_what_was_found_and_starts_with_what_was_under_way(
    invented: Any,
) -> None:
    bayesian = invented.again(**SEARCH)
    record = bayesian.record()
    done, going = (
        bayesian.space.point({"select.ratio": ratio, "cluster.k": 5, "embed.layer": "logits"})
        for ratio in (0.1, 0.2)
    )
    for point in (done, going):
        record.add(point)
        record.start(point.name)
    bayesian.publish(done, 70.0)
    record.finish(done.name)
    again = bayesian.record()
    searcher = search(again)
    first = searcher._ot_study.trials[0]
    assert first.params == done.settings and first.values == [61.0, 7.0, 1000.0]
    assert searcher.suggest("first") == going.settings
    assert bayesian.space.point(searcher.suggest("second")).name not in (done.name, going.name)


FEW: dict[str, Any] = {
    "space": {"select.ratio": [0.1, 0.2, 0.3], "embed.layer": ["pooled", "logits"]},
    "search": "bayesian",
    "trials": 6,
    "objectives": ["validation"],
}
"""A space with as many points as trials: Optuna alone would propose some of them again and again."""


def test_no_point_is_proposed_twice(invented: Any) -> None:
    """Each is known as soon as it is proposed, ended or not, and by the next command too."""
    bayesian = invented.again(**FEW)
    record = bayesian.record()
    searcher = search(record)
    names = []
    for number in range(4):
        point = bayesian.space.point(searcher.suggest(str(number)))
        names.append(point.name)
        record.add(point)
        record.start(point.name)
        if number == 3:
            continue
        invented.publish(point, 70.0)
        record.finish(point.name)
        searcher.on_trial_complete(str(number), {"validation": 61.0})
    again = bayesian.record()
    assert [p.name for p in again.due] == names[3:] and again.left == 3
    later = search(again)
    assert bayesian.space.point(later.suggest("a")).name == names[3], "it was under way"
    names += [bayesian.space.point(later.suggest(name)).name for name in "bc"]
    assert len(set(names)) == 6
    values = [t.values for t in later._ot_study.trials if t.state.name == "COMPLETE"]
    assert all(value == [61.0] for value in values) and len(values) >= 3


def test_an_exhausted_space_ends_in_a_repetition_and_not_in_a_loop(invented: Any) -> None:
    record = invented.again(**FEW).record()
    searcher = search(record)
    names = [record.space.point(searcher.suggest(str(i))).name for i in range(7)]
    assert len(set(names[:6])) == 6 and names[6] in names[:6]


def test_a_refused_point_is_known_as_a_failed_one(invented: Any) -> None:
    space = {"train.batch_size": {"integer": [128, 256]}}
    record = invented.again(**{**SEARCH, "space": space}).record()
    record.refuse({"train.batch_size": 129}, "not whole groups")
    (known,) = search(record)._ot_study.trials
    assert (known.state.name, known.params) == ("FAIL", {"train.batch_size": 129})


def test_the_same_seed_proposes_the_same(invented: Any) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found = [search(invented.again(**SEARCH).record()).suggest("a") for _ in range(2)]
    assert found[0] == found[1]
