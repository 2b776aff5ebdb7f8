"""Names of a pool's classes: which number each class of a source gets when it is imported or appended."""

from __future__ import annotations

from collections.abc import Sequence

from ssat_ray.data.importers.base import Joined
from ssat_ray.data.pool import Pool
from ssat_ray.errors import UserError


def names_of_import(
    source: Joined, given: Sequence[str] | None, num_classes: int | None
) -> tuple[list[str], int | None]:
    """The names of a new pool's classes, and their number (None: what is found).

    Args:
        given: names in the order of their numbers; default: those of the source, sorted.

    Raises:
        UserError: the source has classes that are not among the given ones, or there are more names than
            classes.
    """
    names = list(source.class_names if given is None else given)
    if num_classes is not None and num_classes < len(names):
        raise UserError(
            f"--num-classes {num_classes}: there are {len(names)} classes by name ({_listed(names)})."
        )
    _check_known(source, names, "--classes")
    return names, num_classes if given is None else max(num_classes or 0, len(names))


def names_of_append(source: Joined, pool: Pool, given: Sequence[str] | None) -> list[str]:
    """The names of a pool's classes after an append.

    Args:
        given: names in the order of their numbers: those that the pool has, then new ones.

    Raises:
        UserError: the source has classes that the pool does not know, or `given` does not begin with the
            pool's own.
    """
    known = pool.class_names
    names = list(known if given is None else given)
    if names[: len(known)] != known:
        raise UserError(
            f"--classes {','.join(names)}: {pool.folder} has {_listed(known)}; name these first, in this order."
        )
    if given is not None and not known and len(names) < pool.num_classes:
        raise UserError(
            f"--classes {','.join(names)}: {pool.folder} has {pool.num_classes} classes; name all of them."
        )
    if source.class_names and not names:
        raise UserError(
            f"{source.name} has classes by name ({_listed(source.class_names)}), {pool.folder} has "
            f"{pool.num_classes} without names. --classes NAME,NAME,… names them in the order of their numbers."
        )
    _check_known(source, names, str(pool.folder))
    return names


def _check_known(source: Joined, names: Sequence[str], where: str) -> None:
    for part in source.parts:
        unknown = [name for name in part.class_names if name not in names]
        if unknown:
            raise UserError(
                f"{part.name}: {_listed(unknown)} is no class of {where}, which has {_listed(names)}. Rename or "
                f"remove it; or --classes {','.join([*names, *unknown])} adds it at the end."
            )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f", … ({len(names)} in all)" if len(names) > 10 else "")
