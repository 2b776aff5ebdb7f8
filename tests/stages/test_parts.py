"""Jobs in parts: what Ray Data recorded of every stage that uses it, and how a fault of an actor arrives."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import pytest

from ssat_ray.errors import UserError
from ssat_ray.stages.parts import _FAULT
from ssat_ray.store import write_atomic


def test_a_full_disk_in_an_actor_is_told_in_its_own_words(full_disk: Path) -> None:
    """A traceback is all that arrives from an actor; its user's error is found in it."""
    with pytest.raises(UserError) as error:
        write_atomic(full_disk, b"x")
    found = _FAULT.search("".join(traceback.format_exception(error.value)))
    assert found is not None and found[1] == str(error.value)


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
