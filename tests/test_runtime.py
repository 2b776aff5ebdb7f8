"""Meter, threads, and what the log is told of a failure."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from ssat_ray import pipeline, runtime
from ssat_ray.config import RuntimeConfig
from ssat_ray.errors import RunFailed, UserError
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


def test_short_blocks_share_a_reading_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = []

    def count() -> int:
        readings.append(len(readings))
        return 1000 + len(readings)

    monkeypatch.setattr(runtime, "process_pss", count)
    monkeypatch.setattr(Meter, "_latest", (0.0, 7))
    peaks = []
    for _ in range(20):
        with Meter(interval=30, fresh=False) as meter:
            pass
        peaks.append(meter.peak_pss)
    assert peaks == 20 * [1001] and len(readings) == 1
    with Meter(interval=30) as meter:
        pass
    assert (meter.baseline_pss, meter.peak_pss) == (1002, 1003)


def test_use_threads() -> None:
    found = torch.get_num_threads()
    use_threads(1)
    assert torch.get_num_threads() == 1
    use_threads(found)


def test_ray_that_cannot_start_is_one_paragraph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "file"))  # Ray's folders go below it
    config = RuntimeConfig(num_cpus=1, train_workers=1, actors=1)
    with pytest.raises(RunFailed, match="Ray did not start on this machine: ") as caught:
        runtime.ray_session(config).__enter__()
    message = str(caught.value)
    assert f"{tmp_path}/file/ray/session_latest/logs" in message and "busy" in message
    assert "\n" not in message and "Traceback" in capsys.readouterr().err


def test_too_few_cpus_are_said_before_ray_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    cores = os.cpu_count() or 1
    for config, found in (
        (RuntimeConfig(num_cpus=3, actors=4), 3),
        (RuntimeConfig(train_workers=cores + 1), cores),
    ):
        start = time.perf_counter()
        with pytest.raises(UserError, match=rf"need \d+ CPUs, Ray has {found};"):
            runtime.ray_session(config).__enter__()
        assert time.perf_counter() - start < 0.5


@pytest.mark.ray
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has GPUs")
@pytest.mark.parametrize("settings", [{"gpus_per_worker": 1}, {"gpus_per_actor": 0.5}])
def test_gpus_that_no_node_has_are_not_waited_for(
    settings: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    wanted = {"num_cpus": 1, "train_workers": 1, "actors": 1, "max_gpus": 8, **settings}
    with pytest.raises(UserError, match=r"need (1|0\.5) GPUs, Ray has 0; set runtime\.gpus_per"):
        runtime.ray_session(RuntimeConfig.model_validate(wanted)).__enter__()
    assert not ray.is_initialized()


def test_what_is_to_come_is_waited_for_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = RuntimeConfig(gpus_per_worker=1, max_gpus=4)
    runtime._check_resources(config, [{"CPU": 2.0}], autoscaled=True)
    assert "need 2 GPUs, Ray has 0 and may get 4: waiting for the autoscaler" in caplog.text


def test_the_log_gets_the_cause_of_a_failed_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(jobs: list[Job], context: StageContext) -> None:
        try:
            raise ValueError("the cause deep inside")
        except ValueError as error:
            raise RunFailed("labelled: the last line") from error

    monkeypatch.setitem(pipeline.STAGES, "labelled", Stage("labelled", 1, fail))
    context = StageContext(Store(tmp_path), RuntimeConfig())
    with pytest.raises(RunFailed, match="the last line"):
        pipeline.execute([Job("labelled", 1, {}, {})], context, pipeline.Watcher())
    logged = capsys.readouterr().err
    assert "ValueError: the cause deep inside" in logged and "Traceback" in logged
