"""The MLflow server with the arguments of its Deployment: names it answers to, and its login."""

from __future__ import annotations

import base64
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.manifests.render import Rendering

pytestmark = pytest.mark.slow
LOGIN = ("admin", "a-password-of-the-test")
SERVICE = "ssat-mlflow:5000"


@pytest.fixture(scope="module")
def server(
    rendered: dict[str, Rendering], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Its address on this machine; files that the pod has on its volume are in a temporary folder."""
    folder = tmp_path_factory.mktemp("mlflow")
    objects = rendered["overlays/cpu/platform"].objects
    deployment = next(one for one in objects if one["kind"] == "Deployment")
    config = next(
        one
        for one in objects
        if (one["kind"], one["metadata"]["name"]) == ("ConfigMap", "ssat-mlflow")
    )
    ini = folder / "basic_auth.ini"
    ini.write_text(config["data"]["basic_auth.ini"].replace("/mnt/mlflow", str(folder)))
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    changed = {"--host": "127.0.0.1", "--port": str(port)}
    arguments = []
    for argument in container["args"]:
        name, _, value = argument.replace("/mnt/mlflow", str(folder)).partition("=")
        arguments.append(f"{name}={changed.get(name, value)}")
    secret = {
        "MLFLOW_AUTH_ADMIN_USERNAME": LOGIN[0],
        "MLFLOW_AUTH_ADMIN_PASSWORD": LOGIN[1],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "a-key-of-the-test",
    }
    plain = {one["name"]: one["value"] for one in container["env"] if "value" in one}
    environment = {**os.environ, **plain, **secret, "MLFLOW_AUTH_CONFIG_PATH": str(ini)}
    command = [str(Path(sys.executable).with_name(container["command"][0]))]
    log = folder / "server.log"
    with log.open("w") as output:
        running = subprocess.Popen(
            [*command, *container["command"][1:], *arguments],
            env=environment, cwd=folder, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            if status(address, "/health", "anything") == 200:
                break
            assert running.poll() is None, log.read_text()
            time.sleep(0.5)
        else:
            raise AssertionError(log.read_text())
        yield address
    finally:
        os.killpg(running.pid, 15)
        running.wait(30)


def status(address: str, path: str, host: str, login: tuple[str, str] | None = None) -> int:
    """HTTP status of a GET under the name `host`; 0 if nobody listens."""
    request = urllib.request.Request(address + path, headers={"Host": host})
    if login is not None:
        request.add_header(
            "Authorization", "Basic " + base64.b64encode(":".join(login).encode()).decode()
        )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


SEARCH = "/api/2.0/mlflow/experiments/search?max_results=1"


@pytest.mark.parametrize(
    ("host", "login", "expected"),
    [
        (SERVICE, LOGIN, 200),
        ("ssat-mlflow.ssat.svc.cluster.local:5000", LOGIN, 200),
        ("localhost:5000", LOGIN, 200),
        (SERVICE, None, 401),
        (SERVICE, (LOGIN[0], "password1234"), 401),
        ("attacker.example:5000", LOGIN, 403),
    ],
)
def test_it_answers_to_its_names_and_to_its_login(
    server: str, host: str, login: tuple[str, str] | None, expected: int
) -> None:
    assert status(server, SEARCH, host, login) == expected
