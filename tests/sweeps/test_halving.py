"""ASHA as Ray Tune has it, and what it knows after a restart."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler

from ssat_ray.sweeps.halving import Halving

RUNGS = (20, 60, 180)


def told(scheduler: Halving, name: str, *reports: tuple[int, float]) -> list[str]:
    """The scheduler's answers to a trial's reports."""
    trial = SimpleNamespace(trial_id=name)
    scheduler.on_trial_add(None, trial)
    found: list[str] = []
    for step, value in reports:
        answer = scheduler.on_trial_result(None, trial, {"step": step, "val_pgd": value})
        found.append(answer)
    return found


def test_a_trial_below_the_best_third_of_a_rung_is_stopped() -> None:
    scheduler = Halving(RUNGS, 3, {})
    for name, value in (("a", 50.0), ("b", 60.0), ("c", 70.0)):
        told(scheduler, name, (20, value))
    assert told(scheduler, "d", (20, 71.0)) == [TrialScheduler.CONTINUE]
    assert told(scheduler, "e", (20, 55.0)) == [TrialScheduler.STOP]


@pytest.mark.parametrize("rungs", [(20, 60, 180), (40, 120), (1, 3, 9, 27), (7,)])
def test_every_rung_has_a_decision_of_its_own(rungs: tuple[int, ...]) -> None:
    scheduler = Halving(rungs, 3, {})
    told(scheduler, "good", *((step, 90.0) for step in rungs))
    for place in range(len(rungs)):
        reports = [(step, 90.0) for step in rungs[:place]] + [(rungs[place], 10.0)]
        answers = told(scheduler, f"late at {place}", *reports)
        assert answers == [TrialScheduler.CONTINUE] * place + [TrialScheduler.STOP]


def test_the_last_report_of_a_trial_decides_nothing() -> None:
    scheduler = Halving(RUNGS, 3, {})
    trial: Any = SimpleNamespace(trial_id="a")
    scheduler.on_trial_add(None, trial)
    result = {"status": "finished", "validation": 1.0}
    assert scheduler.on_trial_result(None, trial, result) == TrialScheduler.CONTINUE
    scheduler.on_trial_complete(None, trial, result)


def test_after_a_restart_it_decides_as_before() -> None:
    reports = {"a": [[20, 50.0], [60, 55.0]], "b": [[20, 60.0]], "c": [[20, 70.0], [60, 75.0]]}
    whole = Halving(RUNGS, 3, {})
    for name, known in reports.items():
        told(whole, name, *((int(step), value) for step, value in known))
    again = Halving(RUNGS, 3, reports)
    for scheduler in (whole, again):
        assert told(scheduler, "d", (20, 62.0)) == [TrialScheduler.STOP]
        assert told(scheduler, "e", (20, 99.0), (60, 60.0)) == [
            TrialScheduler.CONTINUE,
            TrialScheduler.STOP,
        ]
