"""`ssat data`: get labelled sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Get labelled sets.")


@app.command()
def download(
    name: Annotated[str, typer.Argument(help="cifar10, cifar100, svhn or svhn-extra")],
    to: Annotated[Path, typer.Option(help="the folder: data.path")],
) -> None:
    """Download a set as published, with torchvision; nothing is fetched that is there already."""
    from ssat_ray.data.download import EXTRA
    from ssat_ray.data.download import download as get

    get(name, to)
    how = (
        f"make a pool of it: ssat pool import {to / 'extra_32x32.mat'} POOL"
        if name == EXTRA
        else f"use it: --set data.name={name} --set data.path={to}"
    )
    print(f"{to} has {name} as published; {how}")
