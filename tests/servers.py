"""What tests need of servers on this machine: a port, the status of a request, an MLflow server."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path


def free_port() -> int:
    """One that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def status(
    url: str,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
) -> int:
    """HTTP status of the answer; 0 if nobody listens."""
    request = urllib.request.Request(url, body, dict(headers or {}), method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


@contextlib.contextmanager
def mlflow_server(
    arguments: list[str], environment: Mapping[str, str], folder: Path
) -> Iterator[str]:
    """The address of `mlflow server` with these arguments, until the `with` block ends; its log is in the folder."""
    port, log = free_port(), folder / "server.log"
    mlflow = str(Path(sys.executable).with_name("mlflow"))
    command = [mlflow, "server", "--host=127.0.0.1", f"--port={port}", *arguments]
    with log.open("w") as output:
        running = subprocess.Popen(
            command, env={**os.environ, **environment}, cwd=folder,
            stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            if status(f"{address}/health") == 200:
                break
            assert running.poll() is None, log.read_text()
            time.sleep(0.5)
        else:
            raise AssertionError(log.read_text())
        yield address
    finally:
        os.killpg(running.pid, 15)
        running.wait(30)
