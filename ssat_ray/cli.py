"""`ssat`: run a comparison, a selection, a sweep or one stage; measure, compare, show a configuration, collect garbage."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated

import typer
import yaml

from ssat_ray.bench_cli import bench
from ssat_ray.compare_cli import compare
from ssat_ray.config import Config
from ssat_ray.data_cli import app as data_app
from ssat_ray.errors import INTERRUPTED, RunFailed, UserError
from ssat_ray.export_cli import export
from ssat_ray.jobs_cli import app as jobs_app
from ssat_ray.loading import load_config, preset_names
from ssat_ray.options import JsonFile, Overrides, Preset, check_folder_of, write_json
from ssat_ray.plan_cli import plan as plan_command
from ssat_ray.pool_cli import app as pool_app
from ssat_ray.run_folder import RunFolder, signals_told
from ssat_ray.start import (
    check_grown,
    check_inputs,
    check_name,
    default_name,
    failures_told,
    json_line,
    stamped,
)
from ssat_ray.sweep_cli import sweep

if TYPE_CHECKING:
    from ssat_ray.drift import MethodDrift
    from ssat_ray.plan import Plan

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(bench, name="bench")
app.add_typer(data_app, name="data")
app.add_typer(pool_app, name="pool")
app.add_typer(jobs_app)
app.command()(export)
app.command()(compare)
app.command("plan")(plan_command)
app.command()(sweep)
STAGE_VERBS = {
    "intermediate": "train the classifier whose latent space is clustered",
    "pretrain": "train the DDPM on the labelled images",
    "generate": "sample the pool from the DDPM",
    "synth": "make the synthetic pool",
    "cluster": "embed the pool, or a part of it, and fit the clusters",
    "score": "score every image of the pool",
    "finetune": "fine-tune the DDPM for the guided rows",
    "quality": "make the guided rows' images and judge them",
    "select": "choose the images to keep and write them as a pool",
    "train": "train every row",
    "evaluate": "attack every row's classifier",
    "report": "write the report",
}


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"ssat_ray {version('ssat_ray')}")
        raise typer.Exit


@app.callback()
def options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print it")
    ] = False,
) -> None:
    """Efficient semi-supervised adversarial training on Ray."""


@app.command()
def run(
    preset: Preset,
    overrides: Overrides = None,
    name: Annotated[str | None, typer.Option(help="run name; default: the preset's")] = None,
    allow_masking: Annotated[
        bool, typer.Option("--allow-masking", help="do not fail when AutoAttack is above PGD")
    ] = False,
    download: Annotated[
        bool,
        typer.Option("--download", help="first get the labelled set into data.path, if missing"),
    ] = False,
) -> None:
    """Compute what is missing of a comparison or selection, then write its report. Run it again to resume."""
    config = load_config(preset, overrides or [])
    if download:
        from ssat_ray.data.download import download_set

        download_set(config.data)
    _run(config, name, None, allow_masking)


@app.command()
def show(preset: Preset, overrides: Overrides = None) -> None:
    """Print the resolved configuration."""
    print(
        yaml.safe_dump(
            load_config(preset, overrides or []).model_dump(mode="json"), sort_keys=False
        ),
        end="",
    )


@app.command()
def presets() -> None:
    """List the presets."""
    print("\n".join(preset_names()))


@app.command()
def gc(
    store: Annotated[str, typer.Option(help="the store's folder")] = "store",
    runs: Annotated[str, typer.Option(help="the runs' folder")] = "runs",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would go")] = False,
    min_age: Annotated[float, typer.Option(help="seconds an artefact must be old")] = 3600.0,
) -> None:
    """Remove artefacts that no run refers to, and folders of runs that computed nothing."""
    from ssat_ray.abandoned import abandoned_runs
    from ssat_ray.garbage import collect_garbage
    from ssat_ray.places import named, remove_tree
    from ssat_ray.store import Store

    for given, what in ((store, "store"), (runs, "runs")):
        if not named(given).is_dir():
            raise UserError(f"--{what} {given}: there is no such folder.")
    removed, size = collect_garbage(Store(store), named(runs), dry_run=dry_run, min_age=min_age)
    abandoned = abandoned_runs(named(runs), Store(store))
    for folder in (*removed, *abandoned):
        print(folder)
    for folder in () if dry_run else abandoned:
        remove_tree(folder)
    print(
        f"{'would remove' if dry_run else 'removed'} {len(removed)} artefacts, {size / 2**20:.1f} MiB, "
        f"and {len(abandoned)} folders of runs that computed nothing"
    )


@app.command()
def drift(
    preset: Preset,
    overrides: Overrides = None,
    name: Annotated[str | None, typer.Option(help="run name; default: the preset's")] = None,
    json_file: JsonFile = None,
) -> None:
    """Score what was appended to the pool, and say whether the clusters still fit.

    Exit code: 0 stable or watch, 3 cluster again, 2 a mistake in the command or the input, 1 failed.
    """
    config = load_config(preset, overrides or [])
    check_folder_of(json_file)
    generations = check_grown(config)
    with _begun(config, name) as (folder, since):
        from ssat_ray import drift as drifting
        from ssat_ray.plan import build_plan
        from ssat_ray.store import Store

        plan, store = build_plan(config), Store(config.runtime.store)
        new = drifting.new_scores(config, plan)
        scored = drifting.missing_shards(plan, store)
        _execute(config, plan, folder, since, "score", allow_masking=True)
        found = [drifting.measure(method, jobs, store) for method, jobs in new.items()]
        command = drifting.command_over_all(preset, overrides or [], name, generations)
        numbers = drifting.to_json(found, command, scored)
        if config.runtime.log_format == "json":
            print(json_line(folder.name, "drift", result=json.loads(numbers)), flush=True)
        else:
            _show_drift(found, scored, drifting.advice(found, command))
        if json_file is not None:
            write_json(json_file, numbers)
    raise typer.Exit(drifting.exit_code(found))


def _show_drift(found: list[MethodDrift], scored: int, advice: str) -> None:
    from rich.console import Console

    from ssat_ray.tables import drift_lines, drift_table

    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(
        f"{scored} shard{'' if scored == 1 else 's'} scored for this comparison", highlight=False
    )
    for one in found:
        console.print(drift_table(one))
        for line in drift_lines(one):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(advice, highlight=False, markup=False, soft_wrap=True)


def _stage_command(stage: str, about: str) -> None:
    def command(preset: Preset, overrides: Overrides = None, name: str | None = None) -> None:
        _run(load_config(preset, overrides or []), name, stage, allow_masking=True)

    command.__doc__ = f"Run the pipeline up to this stage: {about}."
    app.command(stage)(command)


for _stage, _about in STAGE_VERBS.items():
    _stage_command(_stage, _about)


def _run(config: Config, name: str | None, until: str | None, allow_masking: bool) -> None:
    with _begun(config, name) as (folder, since):
        from ssat_ray.plan import build_plan

        _execute(config, build_plan(config), folder, since, until, allow_masking)


@contextlib.contextmanager
def _begun(config: Config, name: str | None) -> Iterator[tuple[RunFolder, float]]:
    """The run's folder, which is not made yet, and the time. What needs no slow imports is checked first."""
    from ssat_ray.store import Store

    since, log_format = time.time(), config.runtime.log_format
    chosen = default_name(config) if name is None else check_name(name)
    with failures_told(log_format, chosen):
        folder = RunFolder.at(config.runtime.runs, chosen)
        check_inputs(config)
        Store(config.runtime.store).check_writable()
        as_json = log_format == "json"
        starting = (
            json_line(chosen, "starting") if as_json else stamped(f"starting {chosen}", since)
        )
        print(starting, flush=True)
        yield folder, since


def _execute(
    config: Config,
    plan: Plan,
    folder: RunFolder,
    since: float,
    until: str | None,
    allow_masking: bool,
) -> None:
    from ssat_ray import pipeline
    from ssat_ray.stages.soundness import require_sound
    from ssat_ray.store import Store
    from ssat_ray.tables import guided_rows, quality_lines, selection_lines
    from ssat_ray.view import Ends, follower, quiet_output

    log = folder.home / "run.log"
    try:
        folder.prepare()
    except OSError as error:
        raise UserError(
            f"runtime.runs: {folder.home} cannot be written ({error.strerror or error})."
        ) from error
    with folder.kept(), quiet_output(folder.local / "run.log") as screen:
        view = follower(config, screen, folder.name, since)
        try:
            with signals_told():
                outcome = pipeline.run(config, plan, view, name=folder.name, until=until)
        except RunFailed as error:
            raise RunFailed(
                f"{error} Finished stages are kept; run the same command to continue. Log: {log}"
            ) from error
        finally:
            view.close()
        store, ends = Store(config.runtime.store), Ends()
        if until == "select" or (until is None and config.goal == "selection"):
            ends = Ends(selection=selection_lines(plan, store))
        elif until == "quality":
            ends = Ends(quality=quality_lines(plan, store), guided=guided_rows(plan, store))
        view.finished(outcome, ends)
    if outcome.untracked:
        raise RunFailed(
            f"the results are in {outcome.folder}, but logging them to MLflow failed: "
            f"{outcome.untracked}. The same command tries logging again. Log: {log}"
        )
    if outcome.results is not None and "rows" in outcome.results and not allow_masking:
        require_sound(outcome.results)


def main() -> None:
    """Entry point: user mistakes, failed runs and Ctrl-C end with one paragraph, codes 2, 1, 130."""
    try:
        app()
    except (UserError, RunFailed) as error:
        print(f"ssat: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, SystemExit) and end.code != INTERRUPTED:
            raise
        print("ssat: interrupted; run the same command to continue.", file=sys.stderr)
        sys.exit(INTERRUPTED)
