"""Jobs in parts: what Ray Data recorded of every stage that uses it, and how a fault of an actor arrives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ssat_ray.stages.base import Task
from ssat_ray.stages.parts import PartActor, in_order
from ssat_ray.store import Job


class Weighed(PartActor):
    @classmethod
    def cost(cls, task: Task, part: int) -> float:
        return float(task.job.params["weight"] / (1 + part))


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


@pytest.mark.ray
@pytest.mark.parametrize("stage", ["generate", "cluster", "score", "evaluate"])
def test_ray_data_stages_record_actors_and_blocks(tiny_run: Any, stage: str) -> None:
    for job in tiny_run.plan.unique:
        if job.stage == stage:
            record = tiny_run.store.record(job)
            assert 1 <= len(record["actor_pids"]) <= 2
            assert record["blocks"] == 4
            assert record["rows"] == (797 if stage == "evaluate" else 400)
            assert record["seconds"] > 0
