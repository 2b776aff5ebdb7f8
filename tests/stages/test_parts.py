"""Jobs in parts: what Ray Data recorded of every stage that uses it."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.ray


@pytest.mark.parametrize("stage", ["generate", "cluster", "score", "evaluate"])
def test_ray_data_stages_record_actors_and_blocks(tiny_run: Any, stage: str) -> None:
    for job in tiny_run.plan.unique:
        if job.stage == stage:
            record = tiny_run.store.record(job)
            assert 1 <= len(record["actor_pids"]) <= 2
            assert record["blocks"] == 4
            assert record["rows"] == (797 if stage == "evaluate" else 400)
            assert record["seconds"] > 0
