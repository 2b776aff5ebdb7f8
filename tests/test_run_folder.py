"""A run's folder: logs that grow beside a bucket get there at the end, every now and then, and before a kill."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ssat_ray.places import CACHE
from ssat_ray.run_folder import LOG, MEMORY, TERMINATED, RunFolder

WORK = """\
import sys, time
from ssat_ray.run_folder import RunFolder
folder = RunFolder.at(sys.argv[1], "try")
folder.prepare()
with folder.kept():
    (folder.local / "run.log").write_text("so far")
    print("at work", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def bucket(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """URI of the runs, and a cache of this test's own."""
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    return s3.uri(f"{s3.bucket()}/runs")


def within(seconds: float, folder: RunFolder, text: str) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (folder.home / LOG).exists() and (folder.home / LOG).read_text() == text:
            return True
        time.sleep(0.05)
    return False


def test_logs_are_copied_now_and_then_and_at_the_end(bucket: str) -> None:
    folder = RunFolder.at(bucket, "try")
    folder.prepare()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError), folder.kept(0.1):
        for text in ("one", "two"):
            (folder.local / LOG).write_text(text)
            assert within(5.0, folder, text)
        (folder.local / MEMORY).write_text("three")
        raise RuntimeError
    assert (folder.home / MEMORY).read_text() == "three"
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_command_that_is_told_to_end_copies_them_first(bucket: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WORK, bucket], stdout=subprocess.PIPE, text=True
    ) as command:
        assert command.stdout is not None and command.stdout.readline() == "at work\n"
        command.send_signal(signal.SIGTERM)
        assert command.wait(timeout=20) == TERMINATED == 143
    assert (RunFolder.at(bucket, "try").home / LOG).read_text() == "so far"


def test_a_later_command_goes_on_with_the_log(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = RunFolder.at(bucket, "try")
    first.prepare()
    with first.kept():
        (first.local / LOG).write_text("one")
    monkeypatch.setenv(CACHE, str(tmp_path / "another node"))
    second = RunFolder.at(bucket, "try")
    second.prepare()
    assert (second.local / LOG).read_text() == "one" and second.local != first.local


def test_a_bucket_that_is_gone_is_a_warning(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    name = s3.bucket()
    folder = RunFolder.at(s3.uri(f"{name}/runs"), "try")
    folder.prepare()
    with caplog.at_level(logging.WARNING), folder.kept():
        (folder.local / LOG).write_text("one")
        s3.client.delete_bucket(Bucket=name)
    assert "could not be copied to s3://" in caplog.text


def test_a_local_folder_is_where_they_grow(tmp_path: Path) -> None:
    folder = RunFolder.at(str(tmp_path), "try")
    folder.prepare()
    before = signal.getsignal(signal.SIGTERM)
    with folder.kept():
        (folder.local / LOG).write_text("one")
        assert signal.getsignal(signal.SIGTERM) == before
    assert [path.name for path in (tmp_path / "try").iterdir()] == [LOG]
