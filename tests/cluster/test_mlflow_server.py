"""The MLflow server with the arguments of its Deployment: names it answers to, and its login."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import pytest

from cluster.manifests.render import Rendering
from tests.servers import mlflow_server, status

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
    assert container["command"] == ["mlflow", "server"]
    arguments = [
        argument.replace("/mnt/mlflow", str(folder))
        for argument in container["args"]
        if not argument.startswith(("--host=", "--port="))
    ]
    secret = {
        "MLFLOW_AUTH_ADMIN_USERNAME": LOGIN[0],
        "MLFLOW_AUTH_ADMIN_PASSWORD": LOGIN[1],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "a-key-of-the-test",
    }
    plain = {one["name"]: one["value"] for one in container["env"] if "value" in one}
    environment = {**plain, **secret, "MLFLOW_AUTH_CONFIG_PATH": str(ini)}
    with mlflow_server(arguments, environment, folder) as address:
        yield address


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
    headers = {"Host": host}
    if login is not None:
        headers["Authorization"] = "Basic " + base64.b64encode(":".join(login).encode()).decode()
    assert status(server + SEARCH, headers=headers) == expected
