"""The MLflow server that a sweep starts on the store's database, so that no two processes share the file.

Run as a module it is the server's keeper: it starts the server again if it ends, and ends it once its own standard input does,
which is when the sweep is gone, however that came.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

START_SECONDS = 180.0
OLD_SECONDS = 40.0
"""That the server of a killed sweep has to end: more than its keeper gives it."""
LOCK = ".mlflow-server.lock"
PAUSE = 2.0
HOST = "127.0.0.1"


class Server:
    """A server at `http://127.0.0.1:<port>`, which only this machine reaches.

    Args:
        database: SQLite file of the tracking store.
        artifacts: folder of artifacts of new experiments.
        log: what the server prints.
    """

    def __init__(self, database: Path, artifacts: Path, log: Path) -> None:
        with socket.socket() as free:
            free.bind((HOST, 0))
            port = free.getsockname()[1]
        self.uri = f"http://{HOST}:{port}"
        os.environ.update(without_proxy(os.environ))
        database.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "ssat_ray.sweeps.server", str(port), str(database)]
        with log.open("ab") as output:
            self._keeper = subprocess.Popen(
                [*command, str(artifacts)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def wait(self, seconds: float = START_SECONDS) -> None:
        """Until it answers.

        Raises:
            TimeoutError: it does not.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
                return
            time.sleep(0.5)
        raise TimeoutError(f"the MLflow server at {self.uri} did not answer within {seconds:.0f} s")

    def stop(self) -> None:
        """End the server and its keeper."""
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._keeper.wait(30)
            return
        os.killpg(self._keeper.pid, signal.SIGKILL)
        self._keeper.wait()


def without_proxy(environment: Mapping[str, str]) -> dict[str, str]:
    """What to set so that no proxy is asked for this machine, which it does not reach; what is excepted already stays so.

    Programs differ in which of the two names they read.
    """
    names = ("no_proxy", "NO_PROXY")
    hosts = [host for name in names for host in environment.get(name, "").split(",") if host]
    text = ",".join(dict.fromkeys(["*"] if "*" in hosts else [*hosts, HOST]))
    return dict.fromkeys(names, text)


def serve(port: str, database: str, artifacts: str, **options: Any) -> subprocess.Popen[bytes]:
    """Start the server without its runner of jobs: half a dozen processes that nobody here asks for.

    Args:
        options: of `subprocess.Popen`.
    """
    command = [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--host", HOST, "--port", port, "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{database}"),
        *("--default-artifact-root", Path(artifacts).as_uri()),
    ]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, **options)


def wait_for_lock(path: Path, gone: threading.Event, seconds: float = OLD_SECONDS) -> IO[str]:
    """A file that the keeper has locked as long as it is open.

    The server of a killed sweep lives some seconds longer, and this one must not write beside it. One of a sweep that is
    alive does not give way: after `seconds` it goes without the lock.

    Args:
        gone: set when the lock is not needed any more.
    """
    file, end = path.open("w"), time.monotonic() + seconds
    while not gone.is_set() and time.monotonic() < end:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            gone.wait(0.2)
    return file


def keep(port: str, database: str, artifacts: str) -> None:
    """Keep a server going until standard input ends; then end all processes of this one's group."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which is meant for the others of the group
    gone = threading.Event()

    def listen() -> None:
        sys.stdin.buffer.read()
        gone.set()

    threading.Thread(target=listen, name="parent", daemon=True).start()
    server = None
    with wait_for_lock(Path(database).with_name(LOCK), gone):
        while not gone.is_set():
            server = serve(port, database, artifacts)
            while server.poll() is None and not gone.wait(PAUSE):
                pass
            gone.wait(PAUSE)
        os.killpg(0, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            if server is not None:
                server.wait(15)
        os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    keep(*sys.argv[1:])
