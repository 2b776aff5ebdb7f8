"""`ssat compare`: runs, sweeps and what MLflow holds as one table, one page and one recommendation."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ssat_ray.errors import UserError
from ssat_ray.options import JsonFile, check_folder_of, write_json


class Attack(StrEnum):
    """Whose accuracy counts."""

    clean = "clean"
    pgd = "pgd"
    apgd_ce = "apgd-ce"
    autoattack = "autoattack"
    validation = "validation"


class By(StrEnum):
    """The cost that the recommendation keeps low."""

    time = "time"
    images = "images"
    memory = "memory"


def compare(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN… | SWEEP",
            help="names in --runs, paths, or MLflow: a tracking URI, with #RUN for one parent run",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="the page; default: compare.html in the one folder, or here"),
    ] = None,
    json_file: JsonFile = None,
    attack: Annotated[
        Attack, typer.Option(help="whose accuracy counts; validation: PGD there")
    ] = Attack.pgd,
    by: Annotated[By, typer.Option(help="the cost that the recommendation keeps low")] = By.time,
    watts: Annotated[float | None, typer.Option(min=0, help="drawn while it runs")] = None,
    price: Annotated[float | None, typer.Option(min=0, help="of a kWh; needs --watts")] = None,
    runs: Annotated[str, typer.Option(help="the runs' folder or URI")] = "runs",
    store: Annotated[
        str | None, typer.Option(help="of per-image results; default: the runs'")
    ] = None,
) -> None:
    """Compare finished runs, or a sweep's trials: table, Pareto fronts, effects, differences, a recommendation.

    Prints a table and writes a page that needs nothing else.
    """
    check_folder_of(json_file)
    if price is not None and watts is None:
        raise UserError("--price is of a kWh, so it needs --watts, what the machines draw.")
    if out is not None and not out.absolute().parent.is_dir():
        raise UserError(f"--out {out}: its folder does not exist; make it first.")

    import json
    import sys

    from rich.console import Console

    from ssat_ray.comparison.analysis import Question
    from ssat_ray.comparison.page import write_page
    from ssat_ray.comparison.table import comparison_lines, outcomes_table
    from ssat_ray.places import named

    question = Question(attack.value, by.value, watts, price, named(runs))
    names = list(dict.fromkeys(sources))
    content, page = write_page(names, question, named(store) if store else None, out)
    if json_file is not None:
        write_json(json_file, json.dumps(content, indent=1, allow_nan=False))
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(outcomes_table(content))
    for line in [*comparison_lines(content), f"page: {page}"]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
