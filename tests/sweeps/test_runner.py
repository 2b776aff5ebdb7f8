"""What a batch makes of failures in worker groups: whose they are, and what is not tried again."""

from __future__ import annotations

from typing import Any

import pytest

from ssat_ray.places import write_atomic
from ssat_ray.plan import Plan, build_plan
from ssat_ray.stages.group import FAILED, FAULT, forget_failures
from ssat_ray.store import Job, Store
from ssat_ray.sweeps.runner import _failure, context_of
from ssat_ray.sweeps.space import Point


@pytest.fixture
def trial(invented: Any) -> tuple[Point, Plan, Store]:
    """The first point of a sweep of `random` with the baseline `full`; nothing is published."""
    point = invented.space.points[0]
    return point, build_plan(point.config), invented.store


def note(store: Store, job: Job, name: str, text: str) -> None:
    write_atomic(store.folder(job) / name, text)


@pytest.mark.parametrize(
    ("row", "stage", "name", "status"),
    [
        ("random", "train", FAILED, "diverged"),
        ("full", "train", FAILED, "failed"),
        ("full", "pretrain", FAILED, "failed"),
        ("random", "train", FAULT, "failed"),
    ],
)
def test_only_a_training_of_the_swept_row_diverges(
    trial: Any, row: str, stage: str, name: str, status: str
) -> None:
    point, plan, store = trial
    assert _failure(point, plan) is None
    note(store, plan.jobs[row, 1, stage], name, "the loss is NaN")
    found = _failure(point, plan)
    assert found is not None and found["status"] == status
    assert found["cause"] == f"{plan.jobs[row, 1, stage].label}: the loss is NaN"


def test_a_diverged_training_is_said_before_a_baseline_that_failed(trial: Any) -> None:
    point, plan, store = trial
    note(store, plan.jobs["full", 0, "train"], FAULT, "a shard is damaged")
    note(store, plan.jobs["random", 0, "train"], FAILED, "the loss is NaN")
    assert _failure(point, plan) == {
        "status": "diverged",
        "cause": "train random seed 0: the loss is NaN",
    }


def test_a_note_is_nothing_once_the_artefact_is_there_or_the_command_is_new(trial: Any) -> None:
    point, plan, store = trial
    job = plan.jobs["full", 0, "train"]
    note(store, job, FAILED, "the loss is NaN")
    forget_failures(map(store.folder, plan.unique))
    assert _failure(point, plan) is None
    note(store, job, FAILED, "the loss is NaN")
    store.publish(job, {"seconds": 1.0})
    assert _failure(point, plan) is None


def test_stages_know_what_each_trial_needs(trial: Any) -> None:
    point, plan, store = trial
    context = context_of(point.config, [plan], store.root)
    assert context.configurations == (frozenset(job.digest for job in plan.unique),)
    assert context.store.root == store.root and context.rungs is None
