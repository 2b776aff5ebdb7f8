"""The keeper of a sweep's own MLflow server: whom it waits for, and that a port that is taken is left."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest

from ssat_ray.sweeps import log as logging
from ssat_ray.sweeps.log import Log
from ssat_ray.sweeps.server import Server, wait_for_lock, without_proxy
from ssat_ray.sweeps.show import Lines

HOLD = (
    "import sys, threading\nfrom pathlib import Path\nfrom ssat_ray.sweeps.server import wait_for_lock\n"
    "file = wait_for_lock(Path(sys.argv[1]), threading.Event())\nprint('held', flush=True)\nsys.stdin.read()"
)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({}, "127.0.0.1"),
        ({"NO_PROXY": "minio.internal"}, "minio.internal,127.0.0.1"),
        ({"no_proxy": "a,127.0.0.1", "NO_PROXY": "b"}, "a,127.0.0.1,b"),
        ({"NO_PROXY": "*"}, "*"),
    ],
)
def test_the_server_is_reached_without_a_proxy(given: dict[str, str], text: str) -> None:
    found = {"http_proxy": "http://proxy:3128", **given, **without_proxy(given)}
    assert found["no_proxy"] == found["NO_PROXY"] == text
    bypass = urllib.request.proxy_bypass_environment
    proxies = {key.removesuffix("_proxy"): value for key, value in found.items()}
    for host in ("127.0.0.1", *(h for h in given.values() if h == "minio.internal")):
        assert bypass(host, proxies)


@pytest.fixture
def holder(tmp_path: Path) -> Any:
    """Another process that has the lock until its standard input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_the_server_of_a_killed_sweep_is_waited_for(holder: Any, tmp_path: Path) -> None:
    since = time.monotonic()
    threading.Timer(1.0, holder.kill).start()
    with wait_for_lock(tmp_path / "lock", threading.Event()) as file:
        assert 0.9 < time.monotonic() - since < 10 and not file.closed
        again = time.monotonic()
        wait_for_lock(tmp_path / "lock", threading.Event(), 0.5).close()
        assert time.monotonic() - again >= 0.5, "it is locked by now"


def test_that_of_a_live_sweep_does_not_hold_up_another_for_ever(
    holder: Any, tmp_path: Path
) -> None:
    since = time.monotonic()
    wait_for_lock(tmp_path / "lock", threading.Event(), 0.5).close()
    assert 0.5 <= time.monotonic() - since < 5
    gone = threading.Event()
    threading.Timer(0.3, gone.set).start()
    wait_for_lock(tmp_path / "lock", gone).close()
    assert time.monotonic() - since < 10, "its own sweep has ended meanwhile"


@pytest.mark.slow
def test_the_server_is_the_only_program_that_has_the_database(tmp_path: Path) -> None:
    """MLflow's own runner of jobs would open it too, and poll it beside the trainings."""
    server = Server(tmp_path / "mlflow.db", tmp_path / "artifacts", tmp_path / "log")
    try:
        server.wait()
        time.sleep(5)  # what the server starts beside itself comes a moment later
        found = psutil.Process(server._keeper.pid).children(recursive=True)
        commands = [" ".join(process.cmdline()) for process in found]
        assert commands and not [text for text in commands if "huey" in text or "jobs" in text]
    finally:
        server.stop()


@pytest.mark.slow
def test_a_server_that_does_not_answer_is_replaced_by_one_at_another_port(
    invented: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Server] = []

    class Hasty(Server):
        """Has no patience, as after minutes with another program at its port."""

        def __init__(self, *places: Path) -> None:
            super().__init__(*places)
            made.append(self)

        def wait(self, seconds: float = 0.1) -> None:
            super().wait(seconds)

    monkeypatch.setattr(logging, "Server", Hasty)
    monkeypatch.setattr(logging, "RETRY_SECONDS", 0.1)
    invented.folder.mkdir(parents=True)
    record = invented.record()
    record.write()
    log = Log(invented.folder, invented.space, Lines("text", "invented"))
    assert "did not answer" in str(log.close(record, 30.0))  # a server takes 15 s to end
    assert len({server.uri for server in made}) == len(made) > 1
    assert not [server for server in made if psutil.pid_exists(server._keeper.pid)]
