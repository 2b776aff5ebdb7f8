"""Three Ray nodes on hosts of their own: network namespaces with addresses, a token, and faults on demand."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil

NETWORK = "10.213.77"
HEAD, WORKERS = 1, (2, 3)
"""Last numbers of the hosts' addresses; the machine itself is 254."""
HEALTH = {
    "RAY_health_check_initial_delay_ms": "5000",
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "4",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "120",
}
"""A host that is out of reach is declared dead within 10 to 30 s; Ray's defaults take up to a minute. One that has lost
its head ends after 2 minutes."""
PATIENCE = 120.0
"""Seconds until a cluster that does not come up is given up."""
GCS_PORT, AGENT_PORT = 6379, 52365
"""Ray's defaults, for the first cluster and the first node."""
BIN = Path(sys.executable).parent
SESSIONS = Path("/tmp/ray")
"""Ray's folder, of which each host has its own."""
OWN_SESSIONS = f'mount -t tmpfs none {SESSIONS} && exec "$@"'


class Hosts:
    """A head without CPUs and two workers of one CPU each, each with a network and Ray's folder of its own.

    All else of the file system is one, as where a cluster has a shared one.

    Args:
        folder: for logs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.token = secrets.token_hex(32)
        self.tag = f"ssat{os.getpid()}"
        self.address = f"http://{NETWORK}.{HEAD}:8265"
        self._processes: dict[int, list[subprocess.Popen[bytes]]] = {}
        self._clusters = self._nodes = 0

    def __enter__(self) -> Hosts:
        with contextlib.ExitStack() as undo:
            remove_orphans()
            undo.push(self.__exit__)
            self._connect()
            self.start()
            undo.pop_all()
        return self

    def _connect(self) -> None:
        """The hosts and the network between them."""
        SESSIONS.mkdir(parents=True, exist_ok=True)
        _ip("link", "add", self._bridge, "type", "bridge")
        _ip("addr", "add", f"{NETWORK}.254/24", "dev", self._bridge)
        _ip("link", "set", self._bridge, "up")
        for host in (HEAD, *WORKERS):
            namespace, inner = self._namespace(host), f"{self.tag}i{host}"
            _ip("netns", "add", namespace)
            _ip("link", "add", self._outer(host), "type", "veth", "peer", "name", inner)
            _ip("link", "set", inner, "netns", namespace)
            _ip("link", "set", self._outer(host), "master", self._bridge, "up")
            _ip("-n", namespace, "link", "set", "lo", "up")
            _ip("-n", namespace, "addr", "add", f"{NETWORK}.{host}/24", "dev", inner)
            _ip("-n", namespace, "link", "set", inner, "up")

    def __exit__(self, *exc: object) -> None:
        self.kill(HEAD, *WORKERS)
        for host in (*WORKERS, HEAD):
            _ip("netns", "delete", self._namespace(host))
            with contextlib.suppress(subprocess.CalledProcessError):  # it goes with its namespace
                _ip("link", "delete", self._outer(host))
        _ip("link", "delete", self._bridge)

    @property
    def _bridge(self) -> str:
        return f"{self.tag}b"

    def _namespace(self, host: int) -> str:
        return f"{self.tag}n{host}"

    def _outer(self, host: int) -> str:
        return f"{self.tag}o{host}"

    @property
    def environment(self) -> dict[str, str]:
        """Of the nodes and of their users."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        ours = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token, "no_proxy": "*"}
        ours |= {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}  # where a job finds its python
        return clean | ours | HEALTH | {"RAY_API_SERVER_ADDRESS": self.address}

    def start(self) -> None:
        """Start a cluster, its nodes one after another: two at once may choose the same names for their sockets.

        Nodes of an earlier cluster that are left on the hosts look for their head at another port, and find none.
        """
        self._clusters += 1
        for number, host in enumerate((HEAD, *WORKERS)):
            self.start_node(host)
            self.wait_for_cpus(number)

    def start_node(self, host: int) -> None:
        """Start a Ray node of the newest cluster on a host."""
        self._nodes += 1
        port = GCS_PORT + self._clusters - 1
        command = ["ip", "netns", "exec", self._namespace(host), "sh", "-c", OWN_SESSIONS, "sh"]
        command += [
            str(BIN / "ray"),
            "start",
            "--block",
            f"--node-ip-address={NETWORK}.{host}",
            "--disable-usage-stats",
        ]
        command += [f"--object-store-memory={300 * 2**20}"]
        command += [f"--dashboard-agent-listen-port={AGENT_PORT + self._nodes}"]
        if host == HEAD:
            command += ["--head", f"--port={port}", "--num-cpus=0"]
            command += [f"--dashboard-host={NETWORK}.{HEAD}", "--dashboard-port=8265"]
        else:
            command += [f"--address={NETWORK}.{HEAD}:{port}", "--num-cpus=1"]
        with open(self.folder / f"host-{host}.log", "ab") as log:
            process = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        self._processes.setdefault(host, []).append(process)

    def wait_for_cpus(self, count: int = len(WORKERS)) -> None:
        """Until so many workers are alive."""
        latest = time.monotonic() + PATIENCE
        while len(self.alive()) != 1 + count:
            assert time.monotonic() < latest, f"there are not {count} workers: {self._logs()}"
            time.sleep(0.5)

    def nodes(self) -> list[dict[str, Any]] | None:
        """What the dashboard says of every node that there was; None where it does not answer."""
        request = urllib.request.Request(
            f"{self.address}/nodes?view=summary",
            headers={"Authorization": f"Bearer {self.token}"},
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with contextlib.suppress(OSError), opener.open(request, timeout=10) as answer:
            return json.load(answer)["data"]["summary"]
        return None

    def alive(self) -> dict[int, str]:
        """Host -> node id of the nodes that Ray takes for alive, once the dashboard answers."""
        found, nodes = {}, None
        latest = time.monotonic() + PATIENCE
        while (nodes := self.nodes()) is None:
            assert time.monotonic() < latest, f"the dashboard does not answer: {self._logs()}"
            time.sleep(0.5)
        for node in nodes:
            if node["raylet"].get("state") == "ALIVE":
                host = int(node["ip"].rpartition(".")[2])
                found[host] = str(node["raylet"]["nodeId"])
        return found

    def processes(self, host: int) -> list[psutil.Process]:
        """All that runs on a host."""
        found = []
        for pid in _ip("netns", "pids", self._namespace(host)).split():
            with contextlib.suppress(psutil.Error):
                found.append(psutil.Process(int(pid)))
        return found

    def named(self, host: int, name: str) -> list[psutil.Process]:
        """What runs on a host with this in its command line."""
        found = []
        for process in self.processes(host):
            with contextlib.suppress(psutil.Error):
                if name in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def working(self, name: str) -> list[int]:
        """Worker hosts that have a process with this in its command line."""
        return [host for host in WORKERS if self.named(host, name)]

    def raylets(self, host: int) -> list[psutil.Process]:
        """Of the nodes of a host: the process that starts and ends all others there."""
        found = []
        for process in self.processes(host):
            with contextlib.suppress(psutil.Error):
                if process.name() == "raylet":
                    found.append(process)
        return found

    def wait_for_end(self, host: int) -> None:
        """Until the newest node of a host has ended by itself."""
        self._processes[host][-1].wait(timeout=120)

    def kill(self, *hosts: int) -> None:
        """SIGKILL everything on these hosts, as if they lost their power at once."""
        while found := [process for host in hosts for process in self.processes(host)]:
            for process in found:
                with contextlib.suppress(psutil.Error):
                    process.send_signal(signal.SIGKILL)
            psutil.wait_procs(found, timeout=10)
        for host in hosts:
            for node in self._processes.pop(host, []):
                node.wait(timeout=30)

    def set_link(self, host: int, state: str) -> None:
        """Cut a host off (`down`) or connect it again (`up`)."""
        _ip("link", "set", self._outer(host), state)

    def _logs(self) -> list[str]:
        return [path.read_text()[-1500:] for path in self.folder.glob("host-*.log")]

    def ssat(self, cwd: Path, *arguments: str) -> subprocess.Popen[bytes]:
        """`ssat …` as a user of the cluster on the machine itself; its output goes to `output.txt`."""
        with open(cwd / "output.txt", "ab") as output:
            return subprocess.Popen(
                [str(BIN / "ssat"), *arguments],
                cwd=cwd,
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


def remove_orphans() -> None:
    """Hosts of a test that was killed: everything on them, and their network."""
    for line in _ip("netns", "list").splitlines():
        found = re.match(r"ssat(\d+)n\d+\b", line)
        if found is None or psutil.pid_exists(int(found[1])):
            continue
        for pid in _ip("netns", "pids", found[0]).split():
            os.kill(int(pid), signal.SIGKILL)
        _ip("netns", "delete", found[0])
    for pid in set(re.findall(r": ssat(\d+)[bo]", _ip("-o", "link"))):
        if not psutil.pid_exists(int(pid)):
            for name in re.findall(rf": (ssat{pid}[bo]\d*)", _ip("-o", "link")):
                _ip("link", "delete", name)


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
    return done.stdout


def namespaces_missing() -> str | None:
    """Why this machine cannot play several hosts, or None."""
    if os.environ.get("SSAT_FAULTS") == "kills":
        return "SSAT_FAULTS=kills"
    if shutil.which("ip") is None:
        return "the command `ip` (iproute2) is missing"
    name, link = f"ssat-probe-{os.getpid()}", f"ssatp{os.getpid()}"
    tries = [("netns", "add", name)]
    tries += [("netns", "exec", name, "mount", "-t", "tmpfs", "none", "/mnt")]
    tries += [("netns", "delete", name)]
    for kind in ("bridge", "veth"):
        tries += [("link", "add", link, "type", kind), ("link", "delete", link)]
    try:
        for one in tries:
            _ip(*one)
    except subprocess.CalledProcessError as error:
        return f"ip {' '.join(one)}: {error.stderr.strip()}"
    return None
