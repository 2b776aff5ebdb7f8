"""The sweep file: what is searched and how, checked as a whole before anything starts. No Ray, no torch."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import itertools
import math
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from ssat_ray.config import ROWS, Config, Positive, Row, Section
from ssat_ray.errors import UserError
from ssat_ray.loading import all_keys, parse_override, read_preset, read_yaml, resolve
from ssat_ray.mistakes import nearest
from ssat_ray.store import canonical_json
from ssat_ray.sweeps.axis import Axis, axis_of

Objective = Literal["validation", "seconds", "images", "memory", "flops"]
"""What a Bayesian search looks at; the first is to be high, the others low."""
ROW = "row"
"""The one key of a space that is none of the configuration: which row is swept."""
OWN = {
    "rows": "row and baselines say which",
    "seeds": "seeds says which",
    "goal": "a sweep compares",
    "preset": "preset says which",
    ROW: "it is a key of the file, or of its space",
    "evaluate.autoattack_seeds": "AutoAttack is for the setting that the sweep recommends",
}
"""Keys of the configuration that the sweep file itself decides, and how."""
ALSO_CALLED = {"select.method": ROW, "select.layer": "embed.layer"}
"""Other names of keys, in `space` and `set`."""
NAME_DIGITS = 10
MOST_CORNERS = 256
BATCH = 5
"""Trials in a batch where the file does not say: the start of a worker group is paid once for so many."""
MOST_DRAWS = 1000
"""Draws a wanted point, until a random search is said to have fewer points than that."""


class Asha(Section):
    """Asynchronous successive halving on validation robust accuracy (Li et al. 2020, arXiv 1810.05934)."""

    grace: Positive = Field(description="training steps before anything is stopped")
    reduction: int = Field(
        3, ge=2, description="a rung keeps the best 1/reduction of what reached it"
    )


class Stopping(Section):
    """What ends configurations before their end."""

    asha: Asha


class Sweep(Section):
    """A sweep file."""

    preset: str = Field(
        description="name of a preset, or a YAML file, here or beside the sweep file"
    )
    fixed: dict[str, Any] = Field(default_factory=dict, alias="set")
    row: Row | None = Field(None, description="the row that is swept, unless the space has `row`")
    baselines: tuple[Row, ...] = Field(("random", "full"), strict=False)
    seeds: tuple[int, ...] = Field((0,), min_length=1, strict=False)
    space: dict[str, Axis] = Field(min_length=1)
    search: Literal["grid", "random", "bayesian"] = "grid"
    trials: Positive | None = Field(None, description="of random and bayesian")
    objectives: tuple[Objective, ...] = Field(
        ("validation", "seconds"), min_length=1, strict=False, description="of bayesian"
    )
    search_seed: int = Field(0, ge=0)
    stopping: Stopping | None = None
    concurrent: Positive | None = Field(None, description="batches at once; null: from the cluster")
    batch: Positive | None = Field(
        None,
        description=f"trials that are computed together; null: {BATCH}, 1 where they cannot be",
    )

    @field_validator("space", mode="before")
    @classmethod
    def _axes(cls, space: Any) -> Any:
        if not isinstance(space, dict):
            raise ValueError("space must be a mapping: key -> list of values, or a range")
        return {key: axis_of(key, found) for key, found in _renamed("space", space).items()}

    @field_validator("fixed", mode="before")
    @classmethod
    def _fixed(cls, fixed: Any) -> Any:
        return _renamed("set", fixed) if isinstance(fixed, dict) else fixed

    @model_validator(mode="after")
    def _one_row(self) -> Sweep:
        if (self.row is None) == (ROW not in self.space):
            raise ValueError(
                "row: say which row is swept, here or as `row` in space"
                + (", not in both" if self.row else "")
            )
        return self

    @model_validator(mode="after")
    def _search_fits(self) -> Sweep:
        if self.search == "grid":
            ranges = [key for key, axis in self.space.items() if axis.kind != "choice"]
            if ranges:
                raise ValueError(
                    f"space.{ranges[0]} is a range, of which search=grid has no values: give a list, "
                    "or search=random or bayesian"
                )
            if self.trials is not None:
                raise ValueError(f"trials={self.trials} goes with search=random or bayesian")
        elif self.trials is None:
            raise ValueError(f"search={self.search} needs trials, their number")
        size = math.prod(axis.size for axis in self.space.values())
        if self.search == "bayesian" and size < (self.trials or 0):
            raise ValueError(
                f"trials={self.trials}: the space has {size} different points; lower trials, or give "
                "search=grid"
            )
        if self.search == "bayesian" and self.stopping is not None:
            raise ValueError(
                "stopping goes with search=grid or random: a trial that was stopped has no "
                "objectives to tell a Bayesian search"
            )
        if self.one_by_one and (self.batch or 1) > 1:
            raise ValueError(
                f"batch={self.batch} goes with search=grid or random without stopping: otherwise one "
                "trial's results decide about the next"
            )
        return self

    @property
    def one_by_one(self) -> bool:
        """Whether what a trial shows decides about others, so that they cannot be computed together."""
        return self.search == "bayesian" or self.stopping is not None

    @property
    def written(self) -> dict[str, Any]:
        """As a sweep file has it, with all defaults."""
        tree = self.model_dump(mode="json", by_alias=True)
        return {**tree, "space": {key: axis.written for key, axis in self.space.items()}}

    @property
    def asha(self) -> Asha | None:
        return None if self.stopping is None else self.stopping.asha


@dataclass(frozen=True)
class Point:
    """One configuration of the space: a trial, with all its seeds.

    Args:
        settings: key -> value, in the order of the space.
        row: the swept one.
        config: with the rows of the trial, the swept one first.
    """

    settings: dict[str, Any]
    row: str
    config: Config

    @cached_property
    def name(self) -> str:
        """Hex digits of a digest of the configuration, without the section that changes no result."""
        return _digest(self.config.model_dump(mode="json", exclude={"runtime"}))


class Space:
    """A sweep file with the overrides of the command line: every point as a checked configuration.

    It holds the preset as it was read, so that a file that is edited later changes nothing.

    Args:
        preset: the sweep's, where it is.

    Raises:
        UserError: a key or value that is not allowed, in the file or at a point.
    """

    def __init__(self, sweep: Sweep, preset: str, overrides: Iterable[str] = ()) -> None:
        self.sweep, self.preset, self._tree = sweep, preset, read_preset(preset)
        given = {ALSO_CALLED.get(k, k): value for k, value in map(parse_override, overrides)}
        for source, keys in (("set", sweep.fixed), ("--set", given)):
            for key in keys:
                self._check_key(f"{source}: {key}", key)
                if key in sweep.space:
                    raise UserError(f"{source}: {key} is in space, which gives it its values.")
        for key in sweep.space:
            if key.startswith("runtime."):
                raise UserError(f"space: {key} changes no result; put it into set.")
            if key != ROW:
                self._check_key(f"space: {key}", key)
        self.fixed = {**sweep.fixed, **given}
        known = sweep.search != "bayesian"
        self.points = [self.point(settings) for settings in points(sweep)] if known else []
        """In the order of the search; none of a Bayesian one, which finds them as it goes."""
        checked = self.points or [self.point(settings) for settings in self._corners()]
        self.base = checked[0].config
        """Whose section `runtime` is that of all."""

    @staticmethod
    def _check_key(where: str, key: str) -> None:
        """UserError for a key that there is not, or that the sweep file itself decides."""
        known = [*_leaves(), ROW]
        if key not in known and not key.startswith("train.none_recipes."):
            near = nearest(key, [*known, *ALSO_CALLED])
            raise UserError(f"{where}: there is no such key{near}.")
        if key in OWN:
            raise UserError(f"{where} cannot be set in a sweep: {OWN[key]}.")

    def _corners(self) -> Iterator[dict[str, Any]]:
        """Points that stand for all: ends of ranges with all choices, some of them where there are many."""
        keys, axes = list(self.sweep.space), self.sweep.space.values()
        corners = itertools.product(*(axis.values for axis in axes))
        for values in itertools.islice(corners, MOST_CORNERS):
            yield dict(zip(keys, values, strict=True))

    def varied(self) -> list[Point]:
        """Points that differ in one key each: those of a grid; otherwise, from two opposite corners, along every key."""
        if self.sweep.search == "grid":
            return self.points
        values = {key: axis.values for key, axis in self.sweep.space.items()}
        found: dict[str, Point] = {}
        for end in (0, -1):  # a point that is refused may be none of those drawn or proposed
            corner = {key: own[end] for key, own in values.items()}
            for key, own in values.items():
                for value in own:
                    with contextlib.suppress(UserError):
                        point = self.point({**corner, key: value})
                        found[point.name] = point
        return list(found.values())

    def point(self, settings: Mapping[str, Any]) -> Point:
        """The point of these settings.

        Raises:
            UserError: the configuration refuses them; the message names the point.
        """
        own = {key: settings[key] for key in self.sweep.space}
        row = str(own.get(ROW, self.sweep.row))
        rows = [row, *(other for other in self.sweep.baselines if other != row)]
        swept = {key: value for key, value in own.items() if key != ROW}
        given = {
            **self.fixed,
            "rows": rows,
            "seeds": list(self.sweep.seeds),
            "goal": "comparison",
            "evaluate.autoattack_seeds": [],
        }
        try:
            config = self._resolve({**given, **swept})
        except UserError as error:
            if self._fault(given) == str(error):
                raise  # the preset's, or that of `set`
            raise UserError(f"space, at {title(own)}: {error}") from error
        return Point(own, row, config)

    def _fault(self, settings: dict[str, Any]) -> str | None:
        """What the configuration refuses in these settings."""
        try:
            self._resolve(settings)
        except UserError as error:
            return str(error)
        return None

    def name_of(self, settings: Mapping[str, Any]) -> str:
        """The name of the point, or of the settings alone if the configuration refuses them."""
        try:
            return self.point(settings).name
        except UserError:
            return f"refused-{_digest({key: settings[key] for key in self.sweep.space})}"

    def _resolve(self, settings: dict[str, Any]) -> Config:
        return resolve(copy.deepcopy(self._tree), settings=copy.deepcopy(settings))


def sweep_file(given: Path) -> Path:
    """The file that a person means: a path, or the name of a sweep that comes with the package."""
    known = resources.files("ssat_ray") / "presets" / "sweeps" / f"{given}.yaml"
    return given if given.suffix or given.is_file() or not known.is_file() else Path(str(known))


def read_sweep(path: Path, overrides: Iterable[str] = ()) -> Space:
    """A sweep file, checked down to every point.

    Args:
        path: or the name of a sweep that comes with the package.

    Raises:
        UserError: it cannot be read, or something in it is not allowed; the message says what is.
    """
    path = sweep_file(path)
    try:
        tree = read_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"sweep file {path} cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise UserError(f"sweep file {path} is not UTF-8 text.") from error
    except (yaml.YAMLError, ValueError) as error:
        where = " ".join(str(error).split())
        raise UserError(f"sweep file {path} is not valid YAML: {where}.") from error
    if not isinstance(tree, dict):
        raise UserError(f"sweep file {path} must be a mapping of keys.")
    try:
        sweep = Sweep.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"sweep file {path}: {_explain(error)}") from error
    preset = sweep.preset
    beside = path.parent / Path(preset).name
    if preset.endswith((".yaml", ".yml")) and not Path(preset).is_file() and beside.is_file():
        preset = str(beside)
    return Space(sweep, preset, overrides)


def points(sweep: Sweep) -> list[dict[str, Any]]:
    """The settings of a grid, in the order of the file, or of a random search, a function of its seed."""
    keys, axes = list(sweep.space), list(sweep.space.values())
    if sweep.search == "grid":
        values = itertools.product(*(axis.values for axis in axes))
        return [dict(zip(keys, one, strict=True)) for one in values]
    assert sweep.search == "random" and sweep.trials is not None
    rng, found = random.Random(sweep.search_seed), dict[str, dict[str, Any]]()
    for _ in range(MOST_DRAWS * sweep.trials):
        one = {key: axis.draw(rng.random()) for key, axis in zip(keys, axes, strict=True)}
        found.setdefault(canonical_json(one), one)
        if len(found) == sweep.trials:
            return list(found.values())
    raise UserError(
        f"trials={sweep.trials}: {MOST_DRAWS * sweep.trials} draws found {len(found)} different points "
        "of the space; lower trials, or give search=grid."
    )


def title(settings: Mapping[str, Any]) -> str:
    """`cluster.k=5 select.ratio=0.05`"""
    return " ".join(f"{key}={value}" for key, value in settings.items())


def _digest(tree: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(tree).encode()).hexdigest()[:NAME_DIGITS]


def _renamed(where: str, keys: dict[Any, Any]) -> dict[str, Any]:
    """Keys by the names that they have in the configuration; ValueError if one is there by both its names."""
    twice = [key for key, name in ALSO_CALLED.items() if key in keys and name in keys]
    if twice:
        raise ValueError(
            f"{where}: {twice[0]} is another name of {ALSO_CALLED[twice[0]]}, which is there too"
        )
    return {ALSO_CALLED.get(key, str(key)): value for key, value in keys.items()}


def _leaves(section: type[BaseModel] = Config) -> list[str]:
    """Every dotted key that has a value, sections not among them."""
    keys = all_keys(section)
    return [key for key in keys if not any(other.startswith(f"{key}.") for other in keys)]


def _explain(error: ValidationError) -> str:
    """One sentence a problem: key, value found, what is allowed."""
    names = [field.alias or name for name, field in Sweep.model_fields.items()]
    lines = []
    for item in error.errors():
        key = ".".join(map(str, item["loc"]))
        if item["type"] == "extra_forbidden":
            lines.append(f"unknown key {key!r}{nearest(key, names)}.")
        elif item["type"] == "value_error":
            lines.append(f"{item['msg'].removeprefix('Value error, ')}.")
        elif item["type"] == "missing":
            lines.append(f"{key} is missing.")
        elif item["loc"][0] in (ROW, "baselines"):
            near = nearest(str(item["input"]), list(ROWS))
            lines.append(f"{key}={item['input']!r}: there is no such row{near}.")
        elif key == "space":
            lines.append("space is empty, so there is nothing to search.")
        else:
            lines.append(f"{key}={item['input']!r}: {item['msg'][0].lower()}{item['msg'][1:]}.")
    return " ".join(dict.fromkeys(lines))
