"""A cluster with a token: who has none is refused, and neither it nor MLflow's password is in what a job leaves."""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.servers import mlflow_server, status

if TYPE_CHECKING:
    from tests.submitted.conftest import Cluster

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SMALL = """\
rows: [full]
model: {widths: [8, 16], strides: [2, 2]}
pool: {source: synth}
synth: {num_images: 500}
objective: {num_steps: 1, step_size: 0.1}
train: {max_steps: 40, eval_every: 20, batch_size: 32, bn_group: 16, warmup_steps: 5}
evaluate: {attacks: [clean, pgd], pgd_steps: 2, pgd_restarts: 1, batch_size: 200}
runtime: {train_workers: 1, actors: 1, checkpoint_minutes: 0.01}
"""
INI = """\
[mlflow]
default_permission = NO_PERMISSIONS
database_uri = sqlite:///{folder}/users.db
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""
WRONG = "0" * 64


@pytest.fixture
def mlflow(cluster: Cluster, tmp_path: Path) -> Iterator[str]:
    """The address of a server that wants the login which the cluster's jobs have; its files are in `tmp_path`."""
    ini = tmp_path / "basic_auth.ini"
    ini.write_text(INI.format(folder=tmp_path))
    name, password = cluster.login
    environment = {
        "MLFLOW_AUTH_CONFIG_PATH": str(ini),
        "MLFLOW_AUTH_ADMIN_USERNAME": name,
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": uuid.uuid4().hex,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    arguments = ["--app-name=basic-auth", "--workers=1"]
    arguments += [f"--backend-store-uri=sqlite:///{tmp_path}/mlflow.db"]
    arguments += [f"--artifacts-destination={tmp_path}/artifacts"]
    with mlflow_server(arguments, environment, tmp_path) as address:
        yield address


def test_no_secret_is_in_what_a_job_leaves(cluster: Cluster, mlflow: str, tmp_path: Path) -> None:
    """Ray's logs of the session, the store, the run's folder, what was printed, and MLflow's files and log."""
    (cluster.cwd / "small.yaml").write_text(SMALL)
    tracking = f"runtime.tracking_uri={mlflow}"
    done = cluster.ssat("submit", "run", "small.yaml", "--name", "small", "--set", tracking)
    assert done.returncode == 0, done.stdout + done.stderr
    job = done.stdout.split()[1]
    said = cluster.ssat("status", job, "--logs")
    assert said.returncode == 0 and "report: " in said.stdout
    assert status(f"{mlflow}/api/2.0/mlflow/experiments/search?max_results=1") == 401
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        assert database.execute("SELECT count(*) FROM runs").fetchone() >= (2,)  # with the login
    places = (cluster.session, cluster.cwd, tmp_path)
    written = {
        path: path.read_bytes() for place in places for path in place.rglob("*") if path.is_file()
    }
    names = {path.name for path in written}
    expected = {f"job-driver-{job}.log", "dashboard.log", "raylet.out", "run.log", "results.json"}
    assert expected <= names and {"report.html", "server.log", "mlflow.db", "head.log"} <= names
    printed = done.stdout + done.stderr + said.stdout + said.stderr
    for secret in (cluster.token, cluster.login[1]):
        assert secret not in printed
        assert [path for path, content in written.items() if secret.encode() in content] == []


@pytest.mark.parametrize(("token", "expected"), [(None, 401), (WRONG, 403), ("right", 200)])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/nodes?view=summary"),
        ("GET", "/logical/actors"),
        ("GET", "/api/jobs/"),
        ("POST", "/api/jobs/"),
    ],
)
def test_the_dashboard_and_the_job_api_ask_for_the_token(
    cluster: Cluster, method: str, path: str, token: str | None, expected: int
) -> None:
    job = f"of-the-test-{uuid.uuid4().hex[:8]}"
    body = {"entrypoint": "true", "submission_id": job}
    found = 500
    for _ in range(30):  # a young cluster has no agent yet that takes a job
        found = answer(cluster, path, token, method, body if method == "POST" else None)
        if found != 500:
            break
        time.sleep(2)
    assert found == expected
    there = answer(cluster, f"/api/jobs/{job}", "right")
    assert there == (200 if method == "POST" and token == "right" else 404)


def answer(
    cluster: Cluster, path: str, token: str | None, method: str = "GET", body: object = None
) -> int:
    """HTTP status for who has the right token, another one or none."""
    headers = {"Content-Type": "application/json"}
    if token is not None:
        headers["Authorization"] = f"Bearer {cluster.token if token == 'right' else token}"
    data = None if body is None else json.dumps(body).encode()
    return status(cluster.address + path, method, headers, data)


@pytest.mark.parametrize(
    ("token", "why"),
    [(None, "Authentication required: Unauthorized"), (WRONG, "Authentication failed: Forbidden")],
)
def test_commands_say_that_the_token_is_missing_or_wrong(
    cluster: Cluster, token: str | None, why: str
) -> None:
    (cluster.cwd / "small.yaml").write_text(SMALL)
    for arguments in (("status",), ("submit", "run", "small.yaml"), ("stop", "ssat-none")):
        done = cluster.ssat(*arguments, token=token)
        assert done.returncode == 2 and why in done.stderr, done.stdout + done.stderr
