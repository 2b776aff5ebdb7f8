"""Jobs in parts: what Ray Data recorded of every stage that uses it, and how a fault of an actor arrives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssat_ray.places import write_atomic
from ssat_ray.stages.base import Task
from ssat_ray.stages.parts import NOTES, Note, PartActor, alone, in_order
from ssat_ray.store import Job


class Weighed(PartActor):
    @classmethod
    def costs(cls, task: Task, parts: list[int]) -> list[float]:
        return [float(task.job.params["weight"] / (1 + part)) for part in parts]


class Refusing(PartActor):
    """Makes nothing, and says what it was asked for."""

    def __init__(self, tasks: list[Task]) -> None:
        self.tasks = tasks

    def process(self, task: Task, part: int) -> Note:
        raise AssertionError(f"part {part} was made")


def test_a_part_that_is_noted_is_not_made_again(tmp_path: Path) -> None:
    """Ray Data gives it out again if its actor was killed before the answer arrived."""
    actor = Refusing([Task(Job("score", 1, {}, {}), tmp_path, {}, tmp_path)])
    write_atomic(tmp_path / NOTES / "00004.json", "{}")
    batch = {"task": np.array([0]), "part": np.array([4])}
    assert actor(batch) is batch
    with pytest.raises(AssertionError, match="part 5 was made"):
        actor({**batch, "part": np.array([5])})


@pytest.mark.parametrize(
    ("actor", "expected"),
    [
        (PartActor, [(0, 1), (0, 2), (1, 0), (1, 3)]),
        (Weighed, [(1, 0), (0, 1), (0, 2), (1, 3)]),
    ],
)
def test_parts_go_by_falling_cost_and_equal_ones_by_number(
    actor: type[PartActor], expected: list[tuple[int, int]], tmp_path: Path
) -> None:
    tasks = [
        Task(Job("evaluate", 1, {"weight": weight}, {}, {}), tmp_path, {}, tmp_path)
        for weight in (6, 4)
    ]
    order = in_order(actor, tasks, {0: {2, 1}, 1: {3, 0}})
    assert [(item["task"], item["part"]) for item in order] == expected


def test_a_job_takes_at_least_as_long_as_its_longest_part() -> None:
    notes = [{"seconds": seconds} for seconds in (5.0, 1.0, 3.0)]
    assert alone(notes, 1) == 9 and alone(notes, 2) == 5 and alone(notes, 8) == 5
    assert alone([{"seconds": 2.0}] * 10, 4) == 5


@pytest.mark.ray
@pytest.mark.parametrize("stage", ["generate", "cluster", "score", "evaluate"])
def test_ray_data_stages_record_actors_and_blocks(tiny_run: Any, stage: str) -> None:
    for (row, _, _), job in tiny_run.plan.jobs.items():
        if job.stage == stage and row != "lcg-km":  # whose pools are smaller
            record = tiny_run.store.record(job)
            assert 1 <= len(record["actor_pids"]) <= 2
            assert record["blocks"] == 4
            assert record["rows"] == (797 if stage == "evaluate" else 400)
            assert record["seconds"] > 0
