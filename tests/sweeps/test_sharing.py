"""What trials share, and that work done twice is seen: by real computations of a stage that needs no Ray."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from ssat_ray import pipeline
from ssat_ray.plan import Plan, build_plan
from ssat_ray.stages.base import StageContext
from ssat_ray.store import RECORD, Job
from ssat_ray.sweeps.runner import context_of
from ssat_ray.sweeps.sharing import COMPUTATIONS, sharing, sharing_text

COUNTED = ("artefacts", "references", "begun", "finished")


@pytest.fixture
def labelled(invented: Any) -> tuple[Job, list[Plan], StageContext]:
    """The one job of this stage, which both trials need, and what it is computed with."""
    plans = [build_plan(point.config) for point in invented.space.points]
    job = next(job for job in plans[0].unique if job.stage == "labelled")
    return job, plans, context_of(invented.space.base, plans, invented.folder)


def counts(plans: list[Plan], context: StageContext, stage: str = "labelled") -> list[float]:
    entry = sharing(plans, context.store, Path(str(context.computations)))[stage]
    return [entry[name] for name in COUNTED]


def compute(job: Job, context: StageContext) -> None:
    pipeline.execute([job], context, pipeline.Watcher())


def test_what_trials_share_is_counted(invented: Any) -> None:
    for point in invented.space.points:
        invented.publish(point, 70.0)
    plans = [build_plan(point.config) for point in invented.space.points]
    found = sharing(plans, invented.store, invented.folder / COMPUTATIONS)
    assert found["labelled"] == {
        "artefacts": 1,
        "references": 2,
        "begun": 0,
        "finished": 0,
        "seconds": 2.0,
        "seconds_unshared": 4.0,
    }
    assert found["select"]["artefacts"] == found["select"]["references"] == 4
    assert (found["train"]["artefacts"], found["train"]["references"]) == (6, 8), "full is shared"


def test_a_computation_is_counted_once_and_a_second_command_adds_none(labelled: Any) -> None:
    job, plans, context = labelled
    for _ in range(2):
        compute(job, context)
        assert counts(plans, context) == [1, 2, 1, 1]


def test_two_that_want_it_at_the_same_moment_compute_it_once(labelled: Any) -> None:
    job, plans, context = labelled
    threads = [threading.Thread(target=compute, args=(job, context)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts(plans, context) == [1, 2, 1, 1]


def test_work_done_twice_is_seen_and_said(labelled: Any) -> None:
    job, plans, context = labelled
    compute(job, context)
    (context.store.folder(job) / RECORD).unlink()
    compute(job, context)
    assert counts(plans, context) == [1, 2, 2, 2]
    found = sharing(plans, context.store, Path(str(context.computations)))
    assert "computed again: labelled 2 times for 1" in sharing_text(found)


def test_a_killed_computation_is_told_from_one_that_was_done_twice(labelled: Any) -> None:
    job, plans, context = labelled
    with pytest.raises(KeyboardInterrupt), pipeline._counted([job], context):
        raise KeyboardInterrupt
    compute(job, context)
    assert counts(plans, context) == [1, 2, 2, 1]
    found = sharing(plans, context.store, Path(str(context.computations)))
    assert "none was computed twice; 1 computation killed or failed" in sharing_text(found)


def test_one_that_was_killed_after_it_published_has_finished(labelled: Any) -> None:
    job, plans, context = labelled
    with pytest.raises(KeyboardInterrupt), pipeline._counted([job], context):
        raise KeyboardInterrupt
    context.store.publish(job, {"seconds": 1.0})
    assert counts(plans, context) == [1, 2, 1, 1]
