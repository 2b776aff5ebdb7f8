"""The table of a sweep's trials, and how each stands."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from ssat_ray.sweeps.show import how, sweep_table


@pytest.fixture
def record(invented: Any) -> Any:
    """A finished trial, a stopped one and one that diverged."""
    record = invented.again(space={"select.ratio": [0.1, 0.2, 0.3]}).record()
    first, second, third = record.space.points
    invented.publish(first, 70.0)
    record.finish(first.name)
    record.start(second.name)
    record.report(second.name, 40, 33.0)
    record.stop(second.name)
    record.fail(third.name, "diverged", "train random seed 0: the loss is NaN")
    return record


def test_a_line_a_trial_and_one_a_baseline_that_all_have(record: Any) -> None:
    console = Console(width=160)
    with console.capture() as captured:
        console.print(sweep_table(record))
    head, *lines = [line.split() for line in captured.get().splitlines()]
    assert head[:2] == ["select.ratio", "status"]
    assert lines[0] == ["0.1", "finished", "61.0", "70.0", "1,000", "110", "7"]
    assert lines[1] == ["0.2", "stopped", "33.0", "40"]
    assert lines[2] == ["0.3", "diverged"]
    assert lines[3] == ["full", "baseline", "61.0", "70.0", "1,000", "110", "7"]


def test_no_interval_that_a_comparison_of_the_same_trials_would_contradict(record: Any) -> None:
    first, second, third = record.trials.values()
    assert how(first) == "PGD 70.0 %"
    assert how(second) == "stopped at 40 steps, validation 33.0 %"
    assert how(third) == "diverged: train random seed 0: the loss is NaN"
    assert not [c.header for c in sweep_table(record).columns if "95" in str(c.header)]
