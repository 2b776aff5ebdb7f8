"""When states are saved: by a clock that the test turns, and on a notice."""

from __future__ import annotations

from itertools import pairwise

import pytest

from ssat_ray.training.cadence import Cadence
from ssat_ray.training.world import World


class Clock:
    """Seconds as the test sets them; counts how often it is read."""

    def __init__(self) -> None:
        self.now, self.reads = 1000.0, 0

    def __call__(self) -> float:
        self.reads += 1
        return self.now


def _saved(minutes: float, seconds_a_step: list[float]) -> tuple[list[float], int]:
    """When (seconds) it was due, and how often the clock was read."""
    clock, found = Clock(), []
    cadence = Cadence(World(), minutes, clock=clock)
    for step, seconds in enumerate(seconds_a_step, 1):
        clock.now += seconds
        if cadence.due(step):
            found.append(clock.now)
    return found, clock.reads


@pytest.mark.parametrize("pace", [0.001, 0.3, 4.0, 50.0])
def test_no_two_states_are_further_apart_than_asked(pace: float) -> None:
    saved, reads = _saved(2.0, [pace] * int(1000 / pace))
    gaps = [b - a for a, b in pairwise([1000.0, *saved])]
    assert gaps and max(gaps) <= 120 + pace
    assert min(gaps) > 100 - pace, "and not much closer"
    assert reads <= 1 + max(1000 / pace, 1000 / 5 * 1.2), "the ranks do not talk in every step"


def test_a_loop_that_slows_down_is_asked_again_in_time() -> None:
    """A pace of 10 ms makes it plan 500 steps ahead; each of them then takes a second."""
    saved, _ = _saved(2.0, [0.01] * 1000 + [1.0] * 3000)
    late = [b - a for a, b in pairwise(saved)][2:]
    assert len(late) > 10 and max(late) <= 121


def test_no_minutes_are_every_step() -> None:
    saved, _ = _saved(0.0, [0.5] * 6)
    assert len(saved) == 6


def test_while_a_notice_stands_every_question_saves() -> None:
    clock, notices = Clock(), iter([False, True, True, False, True])
    cadence = Cadence(World(), 10.0, lambda: next(notices), clock)
    found = []
    for step in range(1, 6):
        clock.now += 6.0
        found.append(cadence.due(step))
    assert found == [False, True, True, False, True]
