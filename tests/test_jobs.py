"""Commands as jobs: what is refused before a cluster is asked, and what is uploaded. Clusters: tests/submitted."""

from __future__ import annotations

import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import typer

from ssat_ray import cli
from ssat_ray.errors import UserError
from ssat_ray.jobs import PATHS, pack, placed
from ssat_ray.jobs_cli import LOCAL
from ssat_ray.loading import all_keys, load_config
from tests.servers import free_port


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
    address = f"http://127.0.0.1:{free_port()}"
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


COMMANDS = typer.main.get_command(cli.app)
assert isinstance(COMMANDS, typer.core.TyperGroup)


@pytest.mark.parametrize("command", sorted(COMMANDS.commands))
def test_every_command_is_a_job_or_said_to_be_none(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that can be submitted get as far as the cluster, where nobody answers."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.chdir(tmp_path)
    arguments = {"plan": ["digits", "--images", "10"], "sweep": ["digits-grid"]}
    local = command in LOCAL or isinstance(COMMANDS.commands[command], typer.core.TyperGroup)
    expected = "expected one of" if local else "did not answer"
    with pytest.raises(UserError, match=expected):
        address = f"http://127.0.0.1:{free_port()}"
        submit("--address", address, command, *arguments.get(command, ["digits"]))


def test_what_can_be_submitted_is_what_the_guide_says() -> None:
    guide = (Path(__file__).parents[1] / "docs/cluster.md").read_text()
    for command in ("run", "sweep", "drift", "plan", "doctor"):
        assert command not in LOCAL and re.search(rf"takes [^.]*`{command}`", guide)


@pytest.fixture
def guarded() -> Iterator[str]:
    """Address of a server that refuses with the status and the words of Ray's."""
    words = {401: "Unauthorized: Missing authentication token"}
    words[403] = "Forbidden: Invalid authentication token"

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status = 403 if "Authorization" in self.headers else 401
            self.send_response(status)
            self.end_headers()
            self.wfile.write(words[status].encode())

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture
def failing() -> Iterator[str]:
    """Address of a server that fails but for its version."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path == "/api/version"
            about = {
                "version": "4",
                "ray_version": version("ray"),
                "ray_commit": "",
                "session_name": "",
            }
            self.send_response(200 if known else 500)
            self.end_headers()
            self.wfile.write(json.dumps(about).encode() if known else b"out of order")

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize("arguments", [["status"], ["status", "ssat-a"], ["stop", "ssat-a"]])
def test_a_server_that_fails_is_not_one_without_jobs(
    arguments: list[str], failing: str, tmp_path: Path
) -> None:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-m", "ssat_ray", *arguments, "--address", failing],
        cwd=tmp_path,
        env={**clean, "HOME": str(tmp_path), "no_proxy": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1 and done.stderr.startswith("ssat: the job server failed: "), done
    assert "out of order" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, "Authentication required: Unauthorized: Missing authentication token"),
        (
            {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64},
            "Authentication failed: Forbidden: Invalid authentication token",
        ),
    ],
)
def test_a_server_that_wants_another_token_is_one_paragraph(
    settings: dict[str, str], reason: str, guarded: str, tmp_path: Path
) -> None:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-m", "ssat_ray", "status", "--address", guarded],
        cwd=tmp_path,
        env={**clean, "HOME": str(tmp_path), "no_proxy": "127.0.0.1", **settings},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == (
        f"ssat: the job server at {guarded} refused: {reason}. Set RAY_AUTH_MODE=token here, and put the "
        "cluster's token into RAY_AUTH_TOKEN or ~/.ray/auth_token.\n"
    )
