"""Training groups: two gloo workers, started once for all jobs."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.ray


@pytest.mark.parametrize("stage", ["intermediate", "pretrain", "train"])
def test_two_workers_in_one_gloo_group(tiny_run: Any, stage: str) -> None:
    for job in tiny_run.plan.unique:
        if job.stage == stage:
            record = tiny_run.store.record(job)
            assert record["world_size"] == 2
            assert record["backend"] == "gloo"
            assert len(set(record["worker_pids"])) == 2
            assert record["seconds"] > 0
            assert record["peak_pss_bytes"] > 50 * 2**20


def test_all_rows_train_in_the_same_worker_group(tiny_run: Any) -> None:
    """The start of a worker group is paid once, not once a row."""
    jobs = [j for j in tiny_run.plan.unique if j.stage == "train"]
    records = [tiny_run.store.record(j) for j in jobs if j.params["recipe"] != "best-of-recipes"]
    assert len(records) == 9
    assert len({tuple(r["worker_pids"]) for r in records}) == 1
    assert sum(r["startup_seconds"] > 1 for r in records) == 1
