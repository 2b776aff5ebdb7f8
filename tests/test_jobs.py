"""Commands as jobs: what is refused here, what is uploaded, and a token-protected cluster that runs them."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pytest

from ssat_ray import cli
from ssat_ray.errors import UserError
from ssat_ray.jobs import PATHS, pack, placed
from ssat_ray.loading import all_keys, load_config

TINY = """\
rows: [random, full]
pool: {source: synth}
synth: {num_images: 2000}
runtime: {train_workers: 1, actors: 1}
"""


def submit(*arguments: str) -> None:
    cli.app(["submit", *arguments], standalone_mode=False)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["rnu", "digits"], r"submit rnu \(did you mean 'run'\?\): expected one of .*run"),
        (["pool", "digits"], "submit pool"),
        (["gc", "--dry-run"], "submit gc"),
        (["run", "digits", "--set", "select.ratoi=1"], "did you mean 'select.ratio'"),
        (["run", "digits", "--name", "a/b"], "--name 'a/b'"),
        (["sweep", "nowhere.yaml"], r"sweep file nowhere\.yaml cannot be read"),
        (["sweep", "sweep.yaml"], "did you mean 'cluster.k'"),
        (["run", "nowhere.yaml"], r"nowhere\.yaml does not exist"),
        (["run", "digits", "--set", "intermediate.checkpoint=x.pt"], r"x\.pt does not exist here"),
        (["drift", "digits", "--json", "x.json"], "--json x.json: .* absolute"),
        (["run", "digits", "--set", "runtime.tracking_uri=sqlite:///x.db"], "tracking_uri=sqlite"),
        (["--with", "big", "run", "digits"], "big has 65 MiB, and at most 64"),
        (["--with", "gone.py", "run", "digits"], "gone.py does not exist"),
    ],
)
def test_mistakes_are_found_before_a_cluster_is_asked(
    arguments: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with open(tmp_path / "big", "wb") as file:
        file.truncate(65 * 2**20)
    (tmp_path / "sweep.yaml").write_text("{preset: digits, row: pcs, space: {cluster.kk: [3]}}")
    with pytest.raises(UserError, match=expected):
        submit(*arguments)


def test_an_option_that_the_command_lacks_is_a_usage_error(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ssat_ray", "submit", "run", "digits", "--sett", "x"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "--sett" in done.stderr


def test_nobody_at_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(UserError, match=rf"job server at {address} did not answer"):
        submit("--address", address, "run", "digits")


@pytest.mark.parametrize("name", ["plain", "exp #2", "a: b"])
def test_relative_paths_are_those_of_this_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path = tmp_path / name
    tmp_path.mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.npz").write_bytes(b"")
    settings = ["data.name=npz", "data.path=mine.npz", "pretrain.checkpoint=google/ddpm-cifar10-32"]
    settings += ["runtime.checkpoints=s3://bucket/states", "runtime.runs=/shared/runs"]
    found = load_config("digits", settings + placed(load_config("digits", settings)))
    assert found.runtime.store == f"{tmp_path}/store" and found.data.path == f"{tmp_path}/mine.npz"
    assert found.runtime.runs == "/shared/runs" and found.runtime.checkpoints == settings[3][20:]
    assert found.pretrain.checkpoint == "google/ddpm-cifar10-32"


def test_every_setting_that_names_a_file_is_known() -> None:
    described = {key for key in all_keys() if key.split(".")[-1] in ("path", "checkpoint", "store")}
    assert described <= set(PATHS) <= set(all_keys())


def test_the_upload_is_the_package_and_what_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    for name in ("net/net.py", "mine.yaml"):
        (tmp_path / name).write_text("x")
    target = tmp_path / "target"
    target.mkdir()
    (tmp_path / "latest.yaml").symlink_to(tmp_path / "mine.yaml")
    pack(target, [tmp_path / "net", tmp_path / "latest.yaml"])
    info = f"ssat_ray-{version('ssat_ray')}.dist-info"
    assert {path.name for path in target.iterdir()} == {"ssat_ray", info, "net", "latest.yaml"}
    told = subprocess.run(
        [
            sys.executable,
            "-S",
            "-c",
            "import importlib.metadata as m; print(m.version('ssat_ray'))",
        ],
        cwd=target,
        capture_output=True,
        text=True,
    )
    assert told.stdout.strip() == version("ssat_ray"), told.stderr
    assert (target / "ssat_ray/presets/digits.yaml").exists() and (target / "net/net.py").exists()
    assert not list(target.rglob("__pycache__"))
    assert sum(p.stat().st_size for p in target.rglob("*") if p.is_file()) < 2**21
    with pytest.raises(UserError, match=r"gone\.py does not exist"):
        pack(target / "net", [tmp_path / "gone.py"])
    with pytest.raises(UserError, match="called ssat_ray"):
        pack(tmp_path / "other", [Path(cli.__file__).parent])


@dataclass(frozen=True)
class Cluster:
    """A head on this machine that wants a token."""

    address: str
    token: str
    cwd: Path

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
            timeout=300,
        )

    def environment(self, token: str | None = "right") -> dict[str, str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        clean |= {"RAY_API_SERVER_ADDRESS": self.address, "no_proxy": "127.0.0.1"}
        clean["HOME"] = str(self.cwd)  # no token of this user's
        if token is not None:
            clean |= {"RAY_AUTH_MODE": "token"}
            clean["RAY_AUTH_TOKEN"] = self.token if token == "right" else token
        return clean


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cwd = tmp_path_factory.mktemp("cluster")
    (cwd / "tiny.yaml").write_text(TINY)
    dashboard = _free_port()
    found = Cluster(f"http://127.0.0.1:{dashboard}", "f" * 64, cwd)
    ray = str(Path(sys.executable).with_name("ray"))
    command = [ray, "start", "--head", "--block", f"--port={_free_port()}", "--num-cpus=2"]
    command += [f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"]
    command += [f"--dashboard-agent-listen-port={_free_port()}"]
    command += [f"--object-store-memory={300 * 2**20}", "--node-ip-address=127.0.0.1"]
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": found.token}
    with open(cwd / "head.log", "wb") as log:
        head = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        for _ in range(120):
            if found.ssat("status").returncode == 0:
                break
            assert head.poll() is None, (cwd / "head.log").read_text()[-3000:]
            time.sleep(1)
        yield found
    finally:
        for process in _children(head.pid):
            os.kill(process, signal.SIGKILL)
        head.wait(timeout=30)


def _children(pid: int) -> list[int]:
    import psutil

    found = psutil.Process(pid)
    return [*(child.pid for child in found.children(recursive=True)), pid]


@pytest.mark.ray
@pytest.mark.slow
class TestOnAClusterWithAToken:
    def test_a_job_ends_as_the_command_would(self, cluster: Cluster) -> None:
        done = cluster.ssat("submit", "select", "tiny.yaml", "--name", "first#1")
        assert done.returncode == 0, done.stdout + done.stderr
        job = re.findall(r"^submitted (ssat-select-first-1-\w+)$", done.stdout, re.MULTILINE)[0]
        assert list((cluster.cwd / "store/select").glob("*/stage.json"))
        assert (cluster.cwd / "runs/first#1/run.json").exists()
        lines = [line for line in done.stdout.splitlines() if "synth:" in line]
        assert lines and len(lines) == len(set(lines)), done.stdout
        assert cluster.ssat("status", job).stdout.startswith(f"{job}  succeeded")
        assert lines[0] in cluster.ssat("status", job, "--logs").stdout
        again = cluster.ssat("submit", "select", "tiny.yaml", "--name", "first#1")
        assert "everything is up to date" in again.stdout and again.returncode == 0

    def test_its_exit_code_is_the_commands(self, cluster: Cluster) -> None:
        done = cluster.ssat("submit", "drift", "tiny.yaml")
        assert done.returncode == 2, done.stdout + done.stderr
        assert "pool.source=synth: only a pool that exists elsewhere" in done.stdout

    def test_two_at_once_share_what_both_need(self, cluster: Cluster) -> None:
        shared = ("--set", "seeds=[5]", "--set", "synth.num_images=300_000")
        rows = {"one": "rows=[random, full]", "other": "rows=[full, random]"}
        jobs = {
            name: subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "ssat_ray",
                    "submit",
                    "select",
                    "tiny.yaml",
                    "--name",
                    name,
                    "--set",
                    row,
                    *shared,
                ],
                cwd=cluster.cwd,
                env=cluster.environment(),
                stdout=subprocess.PIPE,
                text=True,
            )
            for name, row in rows.items()
        }
        said = {name: job.communicate(timeout=300)[0] for name, job in jobs.items()}
        assert [job.returncode for job in jobs.values()] == [0, 0], said
        for stage in ("synth", "select"):
            assert "".join(said.values()).count(f"{stage}: done in") == 1, said

    def test_detached_and_stopped(self, cluster: Cluster) -> None:
        many = ("--set", "synth.num_images=3e7", "--name", "long")
        done = cluster.ssat("submit", "--detach", "synth", "tiny.yaml", *many)
        assert done.returncode == 0, done.stdout + done.stderr
        job = done.stdout.split()[1]
        self._wait(lambda: "running" in cluster.ssat("status", job).stdout)
        assert job in cluster.ssat("status").stdout
        stopped = cluster.ssat("stop", job)
        assert stopped.returncode == 0 and f"{job}: stopped" in stopped.stdout
        assert "ended already" in cluster.ssat("stop", job).stdout

    @pytest.mark.parametrize("token", [None, "0" * 64])
    def test_without_its_token_nobody_gets_in(self, cluster: Cluster, token: str | None) -> None:
        for arguments in (("status",), ("submit", "run", "tiny.yaml")):
            done = cluster.ssat(*arguments, token=token)
            assert done.returncode == 2 and "token" in done.stderr, done.stdout + done.stderr

    def test_an_unknown_job_is_named(self, cluster: Cluster) -> None:
        done = cluster.ssat("status", "ssat-none")
        assert done.returncode == 2 and "has no job ssat-none" in done.stderr

    @staticmethod
    def _wait(done: Callable[[], bool]) -> None:
        for _ in range(60):
            if done():
                return
            time.sleep(1)
        raise AssertionError("not within a minute")
