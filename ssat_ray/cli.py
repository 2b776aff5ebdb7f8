"""`ssat`: run a comparison, a selection or one stage; measure, compare, show a configuration, collect garbage."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
import yaml

from ssat_ray.bench_cli import bench
from ssat_ray.config import Config
from ssat_ray.data_cli import app as data_app
from ssat_ray.errors import RunFailed, UserError
from ssat_ray.export_cli import export
from ssat_ray.loading import load_config, preset_names
from ssat_ray.pool_cli import app as pool_app

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Efficient semi-supervised adversarial training on Ray.",
    pretty_exceptions_enable=False,
)
app.add_typer(bench, name="bench")
app.add_typer(data_app, name="data")
app.add_typer(pool_app, name="pool")
app.command()(export)
INTERRUPTED = 130
"""Exit code after Ctrl-C, which typer gives too instead of passing on the KeyboardInterrupt."""
Preset = Annotated[str, typer.Argument(help="a preset's name (ssat presets) or a YAML file")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="override any key, e.g. select.ratio=0.1"),
]
STAGE_VERBS = {
    "intermediate": "train the classifier whose latent space is clustered",
    "pretrain": "train the DDPM on the labelled images",
    "generate": "sample the pool from the DDPM",
    "synth": "make the synthetic pool",
    "cluster": "embed the pool, or a part of it, and fit the clusters",
    "score": "score every image of the pool",
    "select": "choose the images to keep and write them as a pool",
    "train": "train every row",
    "evaluate": "attack every row's classifier",
    "report": "write the report",
}


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
    """Remove artefacts that no run refers to."""
    from ssat_ray.store import Store

    for given, what in ((store, "store"), (runs, "runs")):
        if not Path(given).is_dir():
            raise UserError(f"--{what} {given}: there is no such folder.")
    removed, size = Store(store).collect_garbage(Path(runs), dry_run=dry_run, min_age=min_age)
    for folder in removed:
        print(folder)
    print(
        f"{'would remove' if dry_run else 'removed'} {len(removed)} artefacts, {size / 2**20:.1f} MiB"
    )


@app.command()
def drift(
    preset: Preset,
    overrides: Overrides = None,
    name: Annotated[str | None, typer.Option(help="run name; default: the preset's")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="write numbers and words here too")
    ] = None,
) -> None:
    """Score what was appended to the pool, and say whether the clusters still fit.

    Exit code: 0 stable or watch, 3 cluster again, 2 a mistake in the command or the input, 1 failed.
    """
    from rich.console import Console

    from ssat_ray import drift as drifting
    from ssat_ray.data.pool import Pool
    from ssat_ray.plan import build_plan
    from ssat_ray.store import Store
    from ssat_ray.view import drift_lines, drift_table

    config = load_config(preset, overrides or [])
    _check_folder_of(json_file)
    plan, store = build_plan(config), Store(config.runtime.store)
    new = drifting.new_scores(config, plan)
    scored = drifting.missing_shards(plan, store)
    _run(config, name, "score", allow_masking=True)
    found = [drifting.measure(method, jobs, store) for method, jobs in new.items()]
    generations = len(Pool(str(config.pool.path)).generations)
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(f"{scored} shards scored for this comparison", highlight=False)
    for one in found:
        console.print(drift_table(one))
        for line in drift_lines(one):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(drifting.advice(found, generations), highlight=False, soft_wrap=True)
    if json_file is not None:
        _write(json_file, drifting.to_json(found, generations, scored))
    raise typer.Exit(drifting.exit_code(found))


@app.command("plan")
def plan_command(
    preset: Preset,
    images: Annotated[int, typer.Option(min=1, help="images of the pool that is planned")],
    overrides: Overrides = None,
    resolution: Annotated[
        int | None, typer.Option(min=1, help="side of its images; default: the labelled images'")
    ] = None,
    gpus: Annotated[float | None, typer.Option(min=0.01, help="GPUs that it will have")] = None,
    watts: Annotated[float | None, typer.Option(min=0, help="drawn while it runs")] = None,
    price: Annotated[float | None, typer.Option(min=0, help="of a kWh; needs --watts")] = None,
    seconds: Annotated[float, typer.Option(min=1, help="of measuring, starts not counted")] = 60.0,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="write plan.json here too")
    ] = None,
) -> None:
    """Measure this cluster on a small pool, and estimate time, memory and bytes of a large one.

    Prints the estimate, and saves it in the run's folder as plan.json.
    """
    from rich.console import Console

    from ssat_ray import probe
    from ssat_ray.estimate import Target, estimate
    from ssat_ray.plan import default_name
    from ssat_ray.view import estimate_lines, estimate_table, quiet_output

    config = load_config(preset, overrides or [])
    _check_folder_of(json_file)
    if price is not None and watts is None:
        raise UserError("--price is of a kWh, so it needs --watts, what the machines draw.")
    log = Path(config.runtime.runs) / default_name(config) / "plan.log"
    with quiet_output(log) as screen:
        console = Console(file=screen, width=None if screen.isatty() else 140)
        try:
            measured = probe.measure(
                config,
                images,
                seconds,
                before=probe.program_seconds(),
                say=lambda text: console.print(text, highlight=False),
            )
        except RunFailed as error:
            raise RunFailed(f"{error} Log: {log}") from error
        flops = 1.0
        if resolution is not None:
            flops = probe.flops_ratio(config, measured.image_shape, resolution)
        target = Target(
            images,
            seeds=len(config.seeds),
            refine_rows=config.cluster.refine_rows,
            resident_bytes=config.runtime.resident_mib * 2**20,
            resolution=resolution,
            flops=flops,
            gpus=gpus,
            watts=watts,
            price=price,
        )
        found = estimate(measured, target)
        console.print(estimate_table(found))
        for line in estimate_lines(found, measured):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        saved = log.with_name("plan.json")
        for path in filter(None, (saved, json_file)):
            _write(path, found.to_json(measured))
        console.print(f"all numbers: {saved}", highlight=False, soft_wrap=True)


def _check_folder_of(json_file: Path | None) -> None:
    """Before the work that the file is about."""
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise UserError(f"--json {json_file}: its folder does not exist; make it first.")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text + "\n")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}).") from error


def _stage_command(stage: str, about: str) -> None:
    def command(preset: Preset, overrides: Overrides = None, name: str | None = None) -> None:
        _run(load_config(preset, overrides or []), name, stage, allow_masking=True)

    command.__doc__ = f"Run the pipeline up to this stage: {about}."
    app.command(stage)(command)


for _stage, _about in STAGE_VERBS.items():
    _stage_command(_stage, _about)


def _run(config: Config, name: str | None, until: str | None, allow_masking: bool) -> None:
    from rich.console import Console

    from ssat_ray import pipeline
    from ssat_ray.plan import check_name, default_name
    from ssat_ray.stages.soundness import require_sound
    from ssat_ray.view import View, quiet_output, results_table, selection_table

    name = default_name(config) if name is None else check_name(name)
    log = Path(config.runtime.runs) / name / "run.log"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"runtime.runs: {log.parent} cannot be written ({error.strerror})."
        ) from error
    with quiet_output(log) as screen:
        console = Console(file=screen, width=None if screen.isatty() else 140)
        view = View(console)
        try:
            outcome = pipeline.run(config, view, name=name, until=until)
        except RunFailed as error:
            raise RunFailed(
                f"{error} Finished stages are kept; run the same command to continue. Log: {log}"
            ) from error
        except SystemExit as end:
            if end.code == 0:  # how Ray Train's own SIGINT handler ends the process
                raise KeyboardInterrupt from end
            raise
        finally:
            view.close()
        if outcome.computed == 0:
            console.print(f"everything is up to date ({outcome.total} artefacts)", highlight=False)
        if outcome.results is not None:
            selected = outcome.results.get("kind") == "selection"
            table = selection_table if selected else results_table
            console.print(table(outcome.results))
            for warning in outcome.results["warnings"]:
                console.print(f"warning: {warning}", highlight=False, markup=False)
            console.print(
                f"report: {outcome.folder / 'report.html'}", highlight=False, soft_wrap=True
            )
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
