"""Values of the options of `ssat pool import` and `append`, read and checked."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ssat_ray.errors import UserError

if TYPE_CHECKING:
    from ssat_ray.data.importers.base import ImportOptions


def check_paths(command: str, sources: list[Path], target: str) -> None:
    """UserError if one path alone was given, which is then the target's."""
    if not sources:
        raise UserError(
            f"ssat pool {command} {target}: a path is missing. Give the sources, then the target (last): the "
            "pool's folder."
        )


def class_names(classes: str | None) -> list[str] | None:
    """The names of --classes; UserError if one is empty or given twice."""
    if classes is None:
        return None
    names = [name.strip() for name in classes.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise UserError(f"--classes {classes}: give different names, for example cat,dog,eel.")
    return names


def import_options(
    format_: str | None,
    image_key: str | None,
    label_key: str | None,
    labels: str | None,
    layout: str | None,
    range_: str | None,
    shape: str | None,
    size: str | None,
    channels: int | None,
) -> ImportOptions:
    """What the importers are told; UserError if a value is not allowed, whatever the files are."""
    from ssat_ray.data.importers.arrays import RANGES
    from ssat_ray.data.importers.base import FORMATS, ImportOptions

    formats = {about.name: module for module, about in FORMATS.items()}
    if format_ not in FORMATS:  # modules' names are understood too
        _check("--format", format_, formats)
    _check("--layout", layout, ("NHWC", "NCHW"))
    _check("--range", range_, RANGES)
    _check("--channels", channels, (1, 3))
    height_width = None if size is None else _numbers("--size", size, "HxW")
    shape3 = None if shape is None else _numbers("--shape", shape, "HxWxC")
    return ImportOptions(
        format=None if format_ is None else formats.get(format_, format_),
        image_key=image_key,
        label_key=label_key,
        labels=labels,
        layout=layout,
        range=range_,
        shape=None if shape3 is None else (shape3[0], shape3[1], shape3[2]),
        size=None if height_width is None else (height_width[0], height_width[1]),
        channels=channels,
    )


def _check(option: str, value: object, allowed: Iterable[object]) -> None:
    if value is not None and value not in allowed:
        raise UserError(f"{option} {value}: allowed are {', '.join(map(str, allowed))}.")


def _numbers(option: str, text: str, form: str) -> list[int]:
    """The numbers of a text such as 32x32x3."""
    parts = text.split("x")
    if len(parts) != form.count("x") + 1 or not all(p.isdecimal() and int(p) > 0 for p in parts):
        raise UserError(
            f"{option} {text}: give {form}, for example {'x'.join(['32', '32', '3'][: len(form) // 2 + 1])}."
        )
    return [int(part) for part in parts]
