"""ASHA as Ray Tune has it, and what it knows after a restart."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler

from ssat_ray.sweeps.halving import Halving

RUNGS = (20, 60, 180)


class Decisions:
    """A scheduler, and what it has decided."""

    def __init__(self, rungs: tuple[int, ...], known: dict[str, Any]) -> None:
        self.last: bool | None = None
        self.scheduler = Halving(rungs, 3, known, self.decide)

    def decide(self, trial: Any, rung: int, go_on: bool) -> None:
        self.last = go_on

    def told(self, name: str, *reports: tuple[int, float]) -> list[bool | None]:
        """Whether a trial goes on after each of its reports; Ray Tune itself is never told to stop it."""
        trial: Any = SimpleNamespace(trial_id=name)
        self.scheduler.on_trial_add(None, trial)
        found = []
        for step, value in reports:
            result = {"step": step, "val_pgd": value}
            answer = self.scheduler.on_trial_result(None, trial, result)
            assert answer == TrialScheduler.CONTINUE
            found.append(self.last)
        return found


def test_a_trial_below_the_best_third_of_a_rung_is_stopped() -> None:
    asha = Decisions(RUNGS, {})
    for name, value in (("a", 50.0), ("b", 60.0), ("c", 70.0)):
        asha.told(name, (20, value))
    assert asha.told("d", (20, 71.0)) == [True]
    assert asha.told("e", (20, 55.0)) == [False]


@pytest.mark.parametrize("rungs", [(20, 60, 180), (40, 120), (1, 3, 9, 27), (7,)])
def test_every_rung_has_a_decision_of_its_own(rungs: tuple[int, ...]) -> None:
    asha = Decisions(rungs, {})
    asha.told("good", *((step, 90.0) for step in rungs))
    for place in range(len(rungs)):
        reports = [(step, 90.0) for step in rungs[:place]] + [(rungs[place], 10.0)]
        assert asha.told(f"late at {place}", *reports) == [True] * place + [False]


def test_the_last_report_of_a_trial_decides_nothing() -> None:
    asha, trial = Decisions(RUNGS, {}), SimpleNamespace(trial_id="a")
    asha.scheduler.on_trial_add(None, trial)
    result = {"status": "finished", "validation": 1.0}
    assert asha.scheduler.on_trial_result(None, trial, result) == TrialScheduler.CONTINUE
    asha.scheduler.on_trial_complete(None, trial, result)
    assert asha.last is None


def test_after_a_restart_it_decides_as_before() -> None:
    reports = {"a": [[20, 50.0], [60, 55.0]], "b": [[20, 60.0]], "c": [[20, 70.0], [60, 75.0]]}
    whole, again = Decisions(RUNGS, {}), Decisions(RUNGS, reports)
    for name, known in reports.items():
        whole.told(name, *((int(step), value) for step, value in known))
    assert again.last is None, "what is known is decided already"
    for asha in (whole, again):
        assert asha.told("d", (20, 62.0)) == [False]
        assert asha.told("e", (20, 99.0), (60, 60.0)) == [True, False]
