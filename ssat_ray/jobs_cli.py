"""`ssat submit`, `ssat status`, `ssat stop`: commands as jobs of a Ray cluster; `ssat doctor`: is it fit for them?"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperGroup

from ssat_ray.config import Config
from ssat_ray.errors import Interrupted, UserError
from ssat_ray.loading import load_config
from ssat_ray.mistakes import nearest
from ssat_ray.options import Overrides, Preset
from ssat_ray.report.words import duration
from ssat_ray.start import check_name, default_name, failures_told, json_line
from ssat_ray.sweeps.space import read_sweep

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

app = typer.Typer()
"""Merged into `ssat`."""
Address = Annotated[
    str | None,
    typer.Option(
        help="of the job server, e.g. http://head:8265; default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS, "
        "or the cluster on this machine"
    ),
]
Job = Annotated[str, typer.Argument(metavar="JOB", help="id that ssat submit printed")]
LOCAL = ("show", "presets", "gc", "export", "compare", "submit", "status", "stop")
"""Commands without a preset to compute, or about this machine's files."""


@app.command(context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True})
def submit(
    context: typer.Context,
    command: Annotated[str, typer.Argument(help="run, sweep, drift, plan, doctor or a stage")],
    arguments: Annotated[list[str], typer.Argument(help="of that command, as on this machine")],
    address: Address = None,
    detach: Annotated[bool, typer.Option("--detach", help="do not wait for its end")] = False,
    upload: Annotated[
        list[Path] | None,
        typer.Option("--with", help="further file or folder to upload, e.g. your model's module"),
    ] = None,
    requirements: Annotated[
        Path | None,
        typer.Option(
            help="cluster/requirements.lock, to install from on a cluster that lacks the packages"
        ),
    ] = None,
) -> None:
    """Run a command as a job of a Ray cluster: upload the code, follow its output, end with its exit code.

    Options of `submit` come before the command, those of the command after it. Store, runs, data and pool must
    be on storage that all nodes share; relative paths are taken from here.
    """
    config, run, named = _checked(context, command, arguments)

    from ssat_ray import jobs

    places = [part for place in jobs.placed(config) for part in ("--set", place)]
    files = [*(upload or []), *named]
    uploaded = {str(path): path.name for path in named}
    arguments = [uploaded.get(str(Path(one)), one) for one in arguments]
    with tempfile.TemporaryDirectory(prefix="ssat-submit-") as folder:
        jobs.pack(Path(folder), files)
        client = jobs.connect(address)
        job = jobs.submit(
            client,
            [command, *arguments, *places],
            Path(folder),
            about={"verb": command, "run": run},
            requirements=requirements,
        )
    print(f"submitted {job}", flush=True)
    if detach:
        print(f"ssat status {job} says how it goes, ssat stop {job} ends it")
        return
    try:
        code = jobs.follow(client, job, _write)
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"interrupted; the job goes on: ssat status {job}, ssat stop {job}."
        ) from error
    info = jobs.details(client, job)
    if code and info.message:
        print(f"ssat: {job}: {info.message.splitlines()[0]}", file=sys.stderr)
    raise typer.Exit(code)


def _checked(
    context: typer.Context, command: str, arguments: list[str]
) -> tuple[Config, str, list[Path]]:
    """Configuration, run name and files of a command, parsed as it will parse them; UserError if it is none."""
    assert context.parent is not None
    group = context.parent.command
    assert isinstance(group, TyperGroup)
    known = [name for name in group.commands if name not in LOCAL]
    allowed = [name for name in known if not isinstance(group.commands[name], TyperGroup)]
    if command not in allowed:
        raise UserError(
            f"ssat submit {command}{nearest(command, allowed)}: expected one of {', '.join(allowed)}."
        )
    parsed = group.commands[command].make_context(command, list(arguments)).params
    if parsed.get("name") is not None:
        check_name(parsed["name"])
    json_file = parsed.get("json_file")
    if json_file is not None and "://" not in json_file and not Path(json_file).is_absolute():
        raise UserError(
            f"--json {json_file}: a job's working folder goes with the job; give an absolute path or a URI."
        )
    overrides, name = parsed["overrides"] or [], parsed.get("name")
    if command == "sweep":
        space = read_sweep(parsed["file"], overrides)
        files = [path for path in (parsed["file"], Path(space.preset)) if _is_yaml(path)]
        return space.base, name or parsed["file"].stem, files
    config = load_config(parsed["preset"], overrides)
    preset = Path(parsed["preset"])
    return config, name or default_name(config), [preset] if _is_yaml(preset) else []


def _is_yaml(path: Path) -> bool:
    return path.suffix in (".yaml", ".yml")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


@app.command()
def status(
    job: Annotated[str | None, typer.Argument(metavar="JOB", help="default: all")] = None,
    address: Address = None,
    logs: Annotated[bool, typer.Option("--logs", help="of one job: what it has printed")] = False,
) -> None:
    """Say how submitted jobs go."""
    if logs and job is None:
        raise UserError("--logs needs the id of a job.")
    from ssat_ray import jobs

    client = jobs.connect(address)
    found = jobs.submitted(client) if job is None else [jobs.details(client, job)]
    if not found:
        print("no jobs of ssat submit on this cluster")
    for one in found:
        print(_line(one))
    if logs and job is not None:
        with jobs.answering():
            print(client.get_job_logs(job), end="")


def _line(info: JobDetails) -> str:
    """`<id>  running  12 min` and, of one that failed, why."""
    ended = info.end_time or 1000 * time.time()
    took = "" if info.start_time is None else duration(round((ended - info.start_time) / 1000))
    why = (info.message or "").splitlines()[:1] if info.status.value == "FAILED" else []
    return "  ".join([str(info.submission_id), info.status.value.lower(), took, *why]).rstrip()


@app.command()
def stop(job: Job, address: Address = None) -> None:
    """Stop a submitted job; what it has finished stays in the store."""
    from ssat_ray import jobs

    client = jobs.connect(address)
    info = jobs.details(client, job)
    if info.status.is_terminal():
        print(f"{job} has ended already: {info.status.value.lower()}")
        return
    with jobs.answering():
        client.stop_job(job)
    while not (info := jobs.details(client, job)).status.is_terminal():
        time.sleep(0.5)
    print(f"{job}: {info.status.value.lower()}")


@app.command()
def doctor(preset: Preset, overrides: Overrides = None) -> None:
    """Look at every node of the cluster, and say what the preset would lack there and how to mend it.

    The cluster is that of runtime.address or RAY_ADDRESS; without them it is this machine. On a cluster elsewhere: ssat
    submit doctor PRESET. Exit code: 0 fit, 1 something would fail, 2 a mistake in the command.
    """
    config = load_config(preset, overrides or [])
    name, as_json = default_name(config), config.runtime.log_format == "json"
    with failures_told(config.runtime.log_format, name):
        from ssat_ray import visits
        from ssat_ray.config import RuntimeConfig
        from ssat_ray.doctor import judge
        from ssat_ray.runtime import ray_session

        asks_little = {"train_workers": 1, "cpus_per_worker": 1, "actors": 1}
        asks_little |= {"gpus_per_worker": 0, "gpus_per_actor": 0}
        joining: RuntimeConfig = config.runtime.model_copy(update=asks_little)
        with ray_session(joining):
            findings = judge(config, visits.look(config))
    for one in findings:
        text = f"{one.level:<8} {one.what}: {one.found}" + (f" -> {one.mend}" if one.mend else "")
        print(json_line(name, "finding", **dataclasses.asdict(one)) if as_json else text)
    raise typer.Exit(int(any(one.level == "error" for one in findings)))
