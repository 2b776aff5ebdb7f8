"""Options that several commands have, and how their values are read and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ssat_ray.counts import whole_number
from ssat_ray.errors import UserError

Preset = Annotated[str, typer.Argument(help="a preset's name (ssat presets) or a YAML file")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="override any key, e.g. select.ratio=0.1"),
]
JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="write numbers and words here too")
]


def parse_count(value: str | int) -> int:
    """A whole number, which may be written as 1e5 or 100_000; typer hands over the option's default too.

    Raises:
        typer.BadParameter: it is none, a usage error of the option.
    """
    found = whole_number(str(value))
    if found is None:
        raise typer.BadParameter(
            f"{value!r} is no whole number; give one such as 100000, 100_000 or 1e5."
        )
    return found


def check_folder_of(json_file: Path | None) -> None:
    """Before the work that the file is about."""
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise UserError(f"--json {json_file}: its folder does not exist; make it first.")


def write_json(path: Path, text: str) -> None:
    """Write a JSON file; UserError if it cannot be written."""
    try:
        path.write_text(text + "\n")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}).") from error
