"""When a trial reports: the mean over its seeds, once all of them have reached a rung."""

from __future__ import annotations

import pytest

from ssat_ray.sweeps.trial import rung_value, rungs_of


def history(*values: float) -> list[dict[str, float]]:
    """Evaluations every 20 steps."""
    return [{"step": 20.0 * (i + 1), "val_pgd": value} for i, value in enumerate(values)]


def test_a_rung_counts_when_every_seed_has_reached_it() -> None:
    first, second = history(10, 20), history(30)
    assert rung_value([first, []], [False, False], 20) is None
    assert rung_value([first, second], [False, False], 20) == 20.0
    assert rung_value([first, second], [False, False], 40) is None
    assert rung_value([first, history(30, 50)], [False, False], 21) == 35.0, "the first from there"


def test_a_seed_that_has_ended_counts_with_its_last_evaluation() -> None:
    ended, going = history(10, 20), history(30, 40, 60)
    assert rung_value([ended, going], [True, False], 60) == 40.0
    assert rung_value([ended, going], [True, False], 20) == 20.0
    assert rung_value([ended, going], [True, True], 80) is None, "nothing was left to stop there"


def test_a_trial_that_was_killed_after_its_trainings_reports_what_it_would_have() -> None:
    """So that later trials are measured by as many as without the kill."""
    first, second = history(10, 20), history(30, 40, 60)
    reported = {rung: rung_value([first, second], [False, False], rung) for rung in (20, 40)}
    reported[60] = rung_value([first, second], [True, False], 60)
    assert reported == {20: 20.0, 40: 30.0, 60: 40.0}
    assert {rung: rung_value([first, second], [True, True], rung) for rung in reported} == reported


@pytest.mark.parametrize(
    ("grace", "reduction", "longest", "expected"),
    [(20, 2, 75, (20, 40)), (20, 2, 80, (20, 40)), (40, 3, 1000, (40, 120, 360)), (80, 3, 75, ())],
)
def test_rungs(grace: int, reduction: int, longest: int, expected: tuple[int, ...]) -> None:
    assert rungs_of(grace, reduction, longest) == expected
