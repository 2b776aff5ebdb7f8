"""`ssat export`: a trained classifier as files and as a registered model, or a run's settings as a preset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ssat_ray.errors import UserError


def export(
    run: Annotated[str, typer.Argument(help="name of a finished run, or SWEEP/TRIAL, in --runs")],
    out: Annotated[
        Path, typer.Option(help="folder to write: new, or empty; FILE.yaml: the run as a preset")
    ],
    row: Annotated[str | None, typer.Option(help="default: the best by validation")] = None,
    seed: Annotated[int | None, typer.Option(help="default: the best by validation")] = None,
    name: Annotated[str | None, typer.Option(help="default: <run>-<row>-seed<seed>")] = None,
    register: Annotated[
        str | None, typer.Option(metavar="MODEL", help="make it a version of a model in MLflow")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="replace files in --out")] = False,
    runs: Annotated[str, typer.Option(help="the runs' folder or URI")] = "runs",
    store: Annotated[str | None, typer.Option(help="the store; default: the run's")] = None,
) -> None:
    """Write a classifier of a finished run as safetensors, as a RobustBench file and with a model card.

    Without --row or --seed it is the one with the best PGD accuracy on the validation images. With --out
    FILE.yaml it writes the run's configuration instead, as a preset that gives the same digests.
    """
    from ssat_ray.places import named
    from ssat_ray.preset import SUFFIXES, write_preset
    from ssat_ray.start import check_name

    found_in = named(runs)
    sweep, _, trial = run.rpartition("/")
    folder = found_in / check_name(sweep, "SWEEP") if sweep else found_in
    check_name(trial, "RUN")
    if out.suffix in SUFFIXES:
        given = {"--row": row, "--seed": seed, "--name": name, "--register": register}
        if any(value is not None for value in given.values()):
            option = next(key for key, value in given.items() if value is not None)
            raise UserError(
                f"{option} is of a classifier, and --out {out} asks for the run's preset; give a folder."
            )
        write_preset(run, found_in, out, force)
        print(f"{out}: ssat run {out} repeats {run}")
        return

    from ssat_ray import export as exporting
    from ssat_ray.registration import register as make_version
    from ssat_ray.report.card import summary

    exporting.check_target(out, force)
    found = exporting.FinishedRun.open(trial, folder, named(store) if store else None)
    chosen, why = exporting.choose(found, row, seed)
    child = f"{chosen[0]} seed {chosen[1]}"
    default = f"{run.replace('/', '-')}-{chosen[0]}-seed{chosen[1]}"
    name = default if name is None else check_name(name)
    about = exporting.describe(found, chosen, why, name)
    version = register and make_version(
        register,
        found.folder,
        found.report,
        child,
        uri=found.config["runtime"]["tracking_uri"],
        store=found.store,
        description=summary(about),
        tags={"ssat_ray.train": about["digests"]["train"], "ssat_ray.export": name},
    )
    written = exporting.write_export(found, chosen, about, out)
    print(f"row {child}: {why}")
    print(f"{out}: {', '.join(path.name for path in written)}")
    if version:
        print(f"MLflow: version {version} of the registered model {register}")
