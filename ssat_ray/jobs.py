"""`ssat` commands as Ray jobs: what is uploaded, which settings a cluster can use, logs and exit codes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import re
import shlex
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import aiohttp
import ray
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

import ssat_ray
from ssat_ray.config import Config
from ssat_ray.errors import RunFailed, UserError, cannot_be_read
from ssat_ray.places import folder_bytes

PREFIX = "ssat-"
"""Of the submission ids that `ssat submit` gives."""
PATHS = (
    "runtime.store",
    "runtime.runs",
    "runtime.checkpoints",
    "data.path",
    "pool.path",
    "intermediate.checkpoint",
    "pretrain.checkpoint",
)
"""Settings that name a file or folder: it must be the same one on every node."""
_CREATED = ("runtime.store", "runtime.runs", "runtime.checkpoints")
_WORKING_DIR = "RAY_RUNTIME_ENV_CREATE_WORKING_DIR"
"""The variable that names the uploaded folder while a node installs packages."""
_API_ADDRESS = "RAY_API_SERVER_ADDRESS"
_TOKENS = "ray._private.authentication.http_token_authentication"
MOST_BYTES = 64 * 2**20
"""Of a file or folder of the user's that is uploaded."""
_LEFT_OUT = shutil.ignore_patterns("__pycache__", ".git", ".venv", "venv", ".env")
_QUIET = 60.0
"""Seconds without output until the job is asked whether it still runs: a cut cable ends no connection."""
_STOP_SECONDS = 20
"""That a stopped job has to end by itself, which Ray kills after 3 otherwise: logs go to their bucket by then."""
_PATIENCE, _PAUSE = 90.0, 2.0
"""Seconds until a server that does not answer is given up, and between two questions."""


def connect(address: str | None) -> JobSubmissionClient:
    """A client of the cluster's job server, of the same Ray version as this machine's.

    Args:
        address: `http://host:8265`; None: RAY_API_SERVER_ADDRESS, RAY_ADDRESS, or the cluster on this machine.

    Raises:
        UserError: nobody answers, the token is wrong or missing, or the Ray versions differ.
    """
    for noisy in (
        "dashboard.modules.dashboard_sdk",
        "dashboard.modules.job.sdk",
        "_private.runtime_env.packaging",
    ):
        logging.getLogger(f"ray.{noisy}").setLevel(logging.WARNING)
    logging.getLogger(_TOKENS).setLevel(logging.ERROR)  # what it warns of ends in our own words
    where = address or os.environ.get(_API_ADDRESS) or os.environ.get("RAY_ADDRESS")
    server = f"the job server at {where}" if where else "the job server"
    try:
        with _api_server(address):
            client = JobSubmissionClient()
        # The public `get_version` gives the version of the job API, not Ray's.
        found = client._do_request("GET", "/api/version").json()["ray_version"]
    except AuthenticationError as error:
        reason = error.message.splitlines()[0].rstrip(".")
        raise UserError(
            f"{server} refused: {reason}. Set RAY_AUTH_MODE=token here, and put the cluster's token into "
            "RAY_AUTH_TOKEN or ~/.ray/auth_token."
        ) from error
    except Exception as error:  # Ray raises requests', its own and built-in types here
        reason = (" ".join(str(error).split()) or type(error).__name__).rstrip(".")
        raise UserError(
            f"{server} did not answer: {reason}. Give its address (--address http://HOST:8265), and the cluster's "
            "token in RAY_AUTH_TOKEN or ~/.ray/auth_token."
        ) from error
    if found != ray.__version__:
        raise UserError(
            f"the cluster runs Ray {found} and this machine {ray.__version__}; install the cluster's "
            f"version here (ray[default]=={found}) or submit from a machine that has it."
        )
    return client


@contextlib.contextmanager
def _api_server(address: str | None) -> Iterator[None]:
    """The variable outranks Ray's own argument, so it is what an explicit address is told by."""
    before = os.environ.get(_API_ADDRESS)
    if address is not None:
        os.environ[_API_ADDRESS] = address
    try:
        yield
    finally:
        if address is not None:
            os.environ.pop(_API_ADDRESS)
            if before is not None:
                os.environ[_API_ADDRESS] = before


def placed(config: Config) -> list[str]:
    """Overrides by which the settings mean the same folder in a job, whose working folder is another.

    Raises:
        UserError: a relative path names nothing here, so nobody knows what it is of.
    """
    overrides = []
    for key in PATHS:
        section, name = key.split(".")
        value = getattr(getattr(config, section), name)
        if value is None or "://" in value or Path(value).is_absolute():
            continue
        if key not in _CREATED and not Path(value).exists():
            if key == "pretrain.checkpoint":  # an id of the hub
                continue
            raise UserError(
                f"{key}: {value} does not exist here; in a job it must be an absolute path or a URI that "
                "every node can read."
            )
        overrides.append(f"{key}={json.dumps(str(Path(value).absolute()))}")  # as YAML reads it
    uri = config.runtime.tracking_uri
    if uri is not None and (
        (uri.startswith("sqlite:///") and not uri.startswith("sqlite:////")) or "://" not in uri
    ):
        raise UserError(
            f"runtime.tracking_uri={uri} is relative to a folder that goes with the job: give a server, an absolute "
            "path, or null for a file in the store."
        )
    return overrides


def pack(target: Path, files: list[Path]) -> None:
    """Fill a folder with what the job needs: this package, and the user's own files and modules.

    Raises:
        UserError: a file does not exist, or it would take another one's place.
    """
    package = Path(ssat_ray.__file__).parent
    shutil.copytree(package, target / package.name, ignore=_LEFT_OUT)
    with contextlib.suppress(PackageNotFoundError):  # run from a clone
        about = distribution(package.name)
        info = target / f"{package.name}-{about.version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(about.read_text("METADATA") or "")
    for file in files:
        if not file.exists():
            raise UserError(f"{file} does not exist, so it cannot be uploaded.")
        name = Path(os.path.abspath(file)).name
        if (target / name).exists():
            raise UserError(f"{file}: two of the uploaded files are called {name}; rename one.")
        size = folder_bytes(file) if file.is_dir() else file.stat().st_size
        if size > MOST_BYTES:
            raise UserError(
                f"{file} has {size / 2**20:,.0f} MiB, and at most {MOST_BYTES // 2**20} are uploaded: put data where "
                "the nodes can read them, and name a folder of code alone."
            )
        try:
            if file.is_dir():
                shutil.copytree(file, target / name, ignore=_LEFT_OUT)
            else:
                shutil.copyfile(file, target / name)
        except OSError as error:  # shutil's own, too
            raise cannot_be_read(file, error) from error


def submit(
    client: JobSubmissionClient,
    arguments: list[str],
    folder: Path,
    *,
    about: dict[str, str],
    requirements: Path | None = None,
) -> str:
    """Submit `ssat ARGUMENTS…`; returns the submission id.

    Args:
        arguments: of `ssat`.
        folder: to upload, the job's working folder.
        about: the job's `verb` and `run`, its metadata.
        requirements: file to install from on a cluster that lacks the dependencies.

    Raises:
        UserError: there are no such requirements. RunFailed: the cluster refuses, or does not answer.
    """
    runtime_env: dict[str, Any] = {
        "working_dir": str(folder),
        "env_vars": {"PYTHONUNBUFFERED": "1", "RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_SECONDS)},
    }
    if requirements is not None:
        runtime_env["pip"] = [f"-r ${{{_WORKING_DIR}}}/{_uploaded(requirements, folder)}"]
    run = re.sub(r"[^A-Za-z0-9_.-]", "-", about["run"])  # it becomes part of an address
    name = f"{PREFIX}{about['verb']}-{run}-{uuid.uuid4().hex[:6]}"
    entrypoint = shlex.join(["python", "-m", "ssat_ray", *arguments])
    latest = time.monotonic() + _PATIENCE
    while True:
        try:
            with answering():
                client.submit_job(
                    entrypoint=entrypoint,
                    submission_id=name,
                    runtime_env=runtime_env,
                    metadata=about,
                )
            return name
        except RunFailed as error:
            young = "No available agent" in str(error)  # a cluster's first half minute
            if not young or time.monotonic() > latest:
                raise
            time.sleep(_PAUSE)


def _uploaded(requirements: Path, folder: Path) -> str:
    """Put the file among what is uploaded; returns its name there.

    Ray would put the contents into an environment variable, for which a lock with hashes is too long. It knows an
    environment by the line that names the file, so the name has the contents' digest.
    """
    try:
        content = requirements.read_bytes()
    except OSError as error:
        raise cannot_be_read(requirements, error) from error
    name = f"requirements-{hashlib.sha256(content).hexdigest()[:12]}.txt"
    (folder / name).write_bytes(content)
    return name


def follow(client: JobSubmissionClient, job: str, write: Callable[[str], object]) -> int:
    """Hand the job's output to `write` as it comes, until it ends; returns its exit code.

    A connection that breaks is made again, and no output is written twice.
    """
    written, lost = 0, None  # characters, and since when nothing comes

    async def tail() -> None:
        nonlocal written, lost
        seen = 0
        output = aiter(client.tail_job_logs(job))
        while True:
            try:
                text = await asyncio.wait_for(anext(output), _QUIET)
            except (StopAsyncIteration, TimeoutError):
                return
            lost = None
            new = text[max(0, written - seen) :]
            seen += len(text)
            written = max(written, seen)
            try:
                write(new)
            except OSError as error:
                raise RunFailed(
                    f"its output cannot be written ({error.strerror}); {job} goes on."
                ) from error

    while True:
        try:
            asyncio.run(tail())
            info = client.get_job_info(job)
            if info.status.is_terminal():
                return exit_code(info)
        except (OSError, RuntimeError, aiohttp.ClientError) as error:
            if _unknown(client, job):
                raise RunFailed(
                    f"the cluster no longer knows {job}: its head has started anew. Submit the same command "
                    "again; it goes on where the job was."
                ) from error
            lost = lost or time.monotonic()
            if time.monotonic() - lost > _PATIENCE:
                raise RunFailed(
                    f"the job server is away ({error}); the job may go on: ssat status {job}."
                ) from error
        time.sleep(_PAUSE)


def _unknown(client: JobSubmissionClient, job: str) -> bool:
    """Whether a server answers, and has no such job."""
    try:
        client.get_job_info(job)
    except RuntimeError as error:
        return "status code 404" in str(error)
    except OSError:
        pass
    return False


def exit_code(info: JobDetails) -> int:
    """The driver's; where it has none, 0 for a job that succeeded and 1 for one that did not."""
    if info.driver_exit_code is not None:
        return int(info.driver_exit_code)
    return 0 if info.status == JobStatus.SUCCEEDED else 1


@contextlib.contextmanager
def answering() -> Iterator[None]:
    """What Ray raises of a server that fails, refuses or does not answer becomes RunFailed."""
    try:
        yield
    except (RuntimeError, OSError, AuthenticationError) as error:  # requests' errors are OSErrors
        reason = (" ".join(str(error).split()) or type(error).__name__).rstrip(".")
        raise RunFailed(f"the job server failed: {reason}.") from error


def submitted(client: JobSubmissionClient) -> list[JobDetails]:
    """The jobs of `ssat submit`, newest first; RunFailed if the server does not answer."""
    with answering():
        every = client.list_jobs()
    found = [job for job in every if (job.submission_id or "").startswith(PREFIX)]
    return sorted(found, key=lambda job: -(job.start_time or sys.maxsize))


def details(client: JobSubmissionClient, job: str) -> JobDetails:
    """Of one job; UserError if the cluster has none of that id, RunFailed if the server does not answer."""
    try:
        with answering():
            return client.get_job_info(job)
    except RunFailed as error:
        if "status code 404" not in str(error):
            raise
        names = ", ".join(str(found.submission_id) for found in submitted(client)) or "none"
        raise UserError(f"the cluster has no job {job}; it has {names}.") from error
