"""`ssat export`: a trained classifier as files that others can load, and as a registered model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    run: Annotated[str, typer.Argument(help="name of a finished run, a folder of --runs")],
    out: Annotated[Path, typer.Option(help="folder to write: new, or empty")],
    row: Annotated[str | None, typer.Option(help="default: the best by validation")] = None,
    seed: Annotated[int | None, typer.Option(help="default: the best by validation")] = None,
    name: Annotated[str | None, typer.Option(help="default: <run>-<row>-seed<seed>")] = None,
    register: Annotated[
        str | None, typer.Option(metavar="MODEL", help="make it a version of a model in MLflow")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="replace files in --out")] = False,
    runs: Annotated[Path, typer.Option(help="the runs' folder")] = Path("runs"),
    store: Annotated[Path | None, typer.Option(help="the store; default: the run's")] = None,
) -> None:
    """Write a classifier of a finished run as safetensors, as a RobustBench file and with a model card.

    Without --row or --seed it is the one with the best PGD accuracy on the validation images.
    """
    from ssat_ray import export as exporting
    from ssat_ray.registration import register as make_version
    from ssat_ray.report.card import summary
    from ssat_ray.start import check_name

    exporting.check_target(out, force)
    found = exporting.FinishedRun.open(check_name(run, "RUN"), runs, store)
    chosen, why = exporting.choose(found, row, seed)
    child = f"{chosen[0]} seed {chosen[1]}"
    name = f"{run}-{chosen[0]}-seed{chosen[1]}" if name is None else check_name(name)
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
