"""Meter, threads, and what the log is told of a failure."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from ssat_ray import pipeline
from ssat_ray.config import RuntimeConfig
from ssat_ray.errors import RunFailed
from ssat_ray.runtime import Meter, use_threads
from ssat_ray.stages.base import Stage, StageContext
from ssat_ray.store import Job, Store


def test_meter_sees_time_and_memory() -> None:
    with Meter(interval=0.01) as before:
        time.sleep(0.05)
    with Meter(interval=0.01) as after:
        block = np.ones(30_000_000)
        time.sleep(0.1)
    assert 0.05 <= before.seconds < 1
    assert after.peak_pss - before.peak_pss > 0.8 * block.nbytes


def test_use_threads() -> None:
    found = torch.get_num_threads()
    use_threads(1)
    assert torch.get_num_threads() == 1
    use_threads(found)


def test_the_log_gets_the_cause_of_a_failed_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(jobs: list[Job], context: StageContext) -> None:
        try:
            raise ValueError("the cause deep inside")
        except ValueError as error:
            raise RunFailed("labelled: the last line") from error

    monkeypatch.setitem(pipeline.STAGES, "labelled", Stage("labelled", 1, fail))
    context = StageContext(Store(tmp_path), RuntimeConfig(), tmp_path / "run.log")
    with pytest.raises(RunFailed, match="the last line"):
        pipeline.execute([Job("labelled", 1, {}, {})], context, pipeline.Watcher())
    logged = capsys.readouterr().err
    assert "ValueError: the cause deep inside" in logged and "Traceback" in logged
