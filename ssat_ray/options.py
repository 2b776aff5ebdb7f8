"""Options that several commands have, and how their values are read and checked."""

from __future__ import annotations

from typing import Annotated

import typer

from ssat_ray.counts import whole_number
from ssat_ray.errors import UserError
from ssat_ray.places import Remote, named

Preset = Annotated[str, typer.Argument(help="a preset's name (ssat presets) or a YAML file")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="override any key, e.g. select.ratio=0.1"),
]
JsonFile = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE", help="write numbers and words here too, a path or URI"),
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


def check_folder_of(json_file: str | None) -> None:
    """Before the work that the file is about.

    Raises:
        UserError: its folder does not exist, or pyarrow can open no such URI.
    """
    if json_file is None:
        return
    found = named(json_file)
    if isinstance(found, Remote):
        _ = found.opened
    elif not found.absolute().parent.is_dir():
        raise UserError(f"--json {json_file}: its folder does not exist; make it first.")


def write_json(json_file: str, text: str) -> None:
    """Write a JSON file; UserError if it cannot be written."""
    found = named(json_file)
    try:
        if isinstance(found, Remote):
            found.write(f"{text}\n".encode())
        else:
            found.write_text(f"{text}\n")  # in its place: it may be a pipe
    except OSError as error:
        raise UserError(f"{json_file} cannot be written ({error.strerror or error}).") from error
