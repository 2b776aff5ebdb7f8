"""A head on this machine that wants a token, for tests that submit jobs to it."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.servers import free_port

OF_MLFLOW = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"


@dataclass(frozen=True)
class Cluster:
    """A head of two CPUs.

    Args:
        cwd: its user's folder.
        scratch: of Ray.
        token: which it wants.
        login: at MLflow, in the environment of its jobs.
    """

    cwd: Path
    scratch: Path
    port: int = field(default_factory=free_port)
    token: str = field(default_factory=lambda: secrets.token_hex(32))
    login: tuple[str, str] = field(default_factory=lambda: ("admin", secrets.token_hex(16)))

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def session(self) -> Path:
        """The folder of Ray's logs."""
        return (self.scratch / "session_latest").resolve()

    def start(self) -> subprocess.Popen[bytes]:
        ray = str(Path(sys.executable).with_name("ray"))
        command = [ray, "start", "--head", "--block", f"--port={free_port()}", "--num-cpus=2"]
        command += [f"--dashboard-port={self.port}", "--dashboard-host=127.0.0.1"]
        command += [f"--dashboard-agent-listen-port={free_port()}", f"--temp-dir={self.scratch}"]
        command += [f"--object-store-memory={300 * 2**20}", "--node-ip-address=127.0.0.1"]
        ours = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token, "no_proxy": "127.0.0.1"}
        ours["PATH"] = (
            f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # its jobs' python
        )
        ours |= dict(zip(OF_MLFLOW, self.login, strict=True))
        with open(self.cwd / "head.log", "wb") as log:
            return subprocess.Popen(
                command, env=os.environ | ours, stdout=log, stderr=log, start_new_session=True
            )

    def ssat(
        self, *arguments: str, token: str | None = "right"
    ) -> subprocess.CompletedProcess[str]:
        """`ssat …` as a user with the right token, another one or (None) without."""
        return subprocess.run(
            [sys.executable, "-m", "ssat_ray", *arguments],
            cwd=self.cwd,
            env=self.environment(token),
            capture_output=True,
            text=True,
            timeout=600,
        )

    def environment(self, token: str | None = "right") -> dict[str, str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        clean |= {"RAY_API_SERVER_ADDRESS": self.address, "no_proxy": "127.0.0.1"}
        clean["HOME"] = str(self.cwd)  # no token of this user's
        if token is not None:
            clean |= {"RAY_AUTH_MODE": "token"}
            clean["RAY_AUTH_TOKEN"] = self.token if token == "right" else token
        return clean


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    scratch = Path(
        tempfile.mkdtemp(prefix="ssat")
    )  # short: names of sockets have at most 107 bytes
    found = Cluster(tmp_path_factory.mktemp("cluster"), scratch)
    head = found.start()
    try:
        for _ in range(120):
            if found.ssat("status").returncode == 0:
                break
            assert head.poll() is None, (found.cwd / "head.log").read_text()[-3000:]
            time.sleep(1)
        yield found
    finally:
        own = psutil.Process(head.pid)
        for process in [*own.children(recursive=True), own]:
            os.kill(process.pid, signal.SIGKILL)
        head.wait(timeout=30)
        shutil.rmtree(scratch, ignore_errors=True)
