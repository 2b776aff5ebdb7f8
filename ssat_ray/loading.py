"""From a preset and overrides to a configuration, or to a message that names what is wrong with them."""

from __future__ import annotations

import contextlib
import re
import types
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ssat_ray.config import Config
from ssat_ray.counts import whole_number
from ssat_ray.errors import UserError
from ssat_ray.mistakes import nearest


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number, as everywhere but in YAML 1.1, and 1e5 a whole one."""


def _number(loader: _Loader, node: yaml.ScalarNode) -> float:
    """A count may be written with an exponent; 3.0 stays a fraction, so that it is no count."""
    whole = whole_number(node.value) if "e" in node.value.lower() else None
    return loader.construct_yaml_float(node) if whole is None else whole


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)
_Loader.add_constructor("tag:yaml.org,2002:float", _number)


def read_yaml(text: str) -> Any:
    """The value of a YAML text, numbers as above; yaml.YAMLError or ValueError if it is none."""
    return yaml.load(text, _Loader)  # a SafeLoader


def preset_names() -> list[str]:
    """Names of the presets that ship with the package."""
    folder = resources.files("ssat_ray") / "presets"
    return sorted(
        p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml")
    )


def load_config(
    preset: str, overrides: Sequence[str] = (), settings: Mapping[str, Any] | None = None
) -> Config:
    """Resolve a preset (a name or a YAML file) with `key.path=value` overrides.

    Args:
        settings: further overrides, as dotted key -> value; of the same key they win.

    Raises:
        UserError: unknown preset or key, or a value of the wrong type or out of range; the message
            names the key, the value found, what is allowed and the nearest valid key.
    """
    return resolve(read_preset(preset), overrides, settings)


def read_preset(preset: str) -> dict[str, Any]:
    """The tree of keys of a preset (a name or a YAML file), not checked; UserError if there is none."""
    if preset.endswith((".yaml", ".yml")):
        path = Path(preset)
        if not path.is_file():
            raise UserError(f"preset file {preset} does not exist.")
        try:
            text, name = path.read_text(encoding="utf-8"), path.stem
        except UnicodeDecodeError as error:
            raise UserError(
                f"preset file {preset} is not UTF-8 text: byte {error.object[error.start]:#04x} "
                f"at offset {error.start}."
            ) from error
        except OSError as error:
            raise UserError(f"preset file {preset} cannot be read ({error.strerror}).") from error
    else:
        if preset not in preset_names():
            raise UserError(
                f"unknown preset {preset!r}{nearest(preset, preset_names())}; "
                f"the presets are {', '.join(preset_names())}, or give a .yaml file."
            )
        text, name = (
            (resources.files("ssat_ray") / "presets" / f"{preset}.yaml").read_text(),
            preset,
        )
    try:
        tree = read_yaml(text) or {}
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that does not exist
        where = " ".join(str(error).split())
        raise UserError(f"preset {preset} is not valid YAML: {where}.") from error
    if not isinstance(tree, dict):
        raise UserError(f"preset {preset} must be a mapping of keys, found {type(tree).__name__}.")
    return {**tree, "preset": name}


def resolve(
    tree: dict[str, Any], overrides: Sequence[str] = (), settings: Mapping[str, Any] | None = None
) -> Config:
    """The configuration of a tree of keys with overrides, as `load_config`; UserError likewise."""
    for key, value in (*map(parse_override, overrides), *(settings or {}).items()):
        _assign(tree, key.split("."), value)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(_explain(error)) from error


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key to value; an empty section stays a value."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def parse_override(override: str) -> tuple[str, Any]:
    """Key and value of `key=value`, of which the value is YAML; UserError if it is not of this form."""
    key, sep, value = override.partition("=")
    if not sep:
        raise UserError(f"--set {override}: expected key=value, for example select.ratio=0.1.")
    try:
        return key.strip(), read_yaml(value)
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"--set {override}: {value!r} is not a YAML value.") from error


def _assign(tree: dict[str, Any], path: list[str], value: Any) -> None:
    """Set tree[path] = value after checking that the schema has such a key."""
    section: type[BaseModel] = Config
    for depth, key in enumerate(path):
        dotted = ".".join(path[: depth + 1])
        if key not in section.model_fields:
            raise UserError(f"unknown key {dotted!r}{nearest(dotted, all_keys())}.")
        if depth == len(path) - 1:
            break
        inner = section.model_fields[key].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            if get_origin(inner) is dict:
                break
            raise UserError(f"unknown key {'.'.join(path)!r}: {dotted} is a value, not a section.")
        section = inner
    for depth, key in enumerate(path[:-1]):
        if tree.get(key) is None:  # absent, or an empty section of a YAML file
            tree[key] = {}
        if not isinstance(tree[key], dict):
            raise UserError(
                f"{'.'.join(path[: depth + 1])}={tree[key]!r}: input should be a mapping of keys, "
                f"so that --set can override {'.'.join(path)}."
            )
        tree = tree[key]
    tree[path[-1]] = value


def all_keys(section: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """Every dotted key of the tree, sections included."""
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += all_keys(field.annotation, f"{prefix}{name}.")
    return keys


def _explain(error: ValidationError) -> str:
    """One sentence a problem: key, value found, what is allowed."""
    lines = []
    problems = error.errors()
    parents = {item["loc"][:-1] for item in problems}
    for item in problems:
        if item["type"] == "too_short" and item["loc"] in parents:
            continue  # too short only because its bad entries do not count
        path = [str(p) for p in item["loc"]]
        key = ".".join(path)
        if item["type"] == "extra_forbidden":
            lines.append(f"unknown key {key!r}{nearest(key, all_keys())}.")
        elif item["type"] == "value_error":
            lines.append(f"{item['msg'].removeprefix('Value error, ')}.")
        else:
            lines.append(f"{key}={item['input']!r}: {_allowed(item, path)}.")
    return " ".join(dict.fromkeys(lines))


def _allowed(item: ErrorDetails, path: list[str]) -> str:
    """What a key may be, after a value that it may not be."""
    key, found = ".".join(path), item["input"]
    if item["type"] == "tuple_type":
        example = (
            "" if isinstance(found, dict) or found is None else f", for example {key}=[{found}]"
        )
        return f"it is a list{example}"
    if item["type"] == "model_type":
        return f"it is a section; set its keys, for example {key}.{_key_for(item, path)}"
    return item["msg"][0].lower() + item["msg"][1:] + _type_of(path)


def _key_for(item: ErrorDetails, path: list[str]) -> str:
    """`key=value` within a section: of the first key that the value suits, else the first key's default."""
    section: type[BaseModel] = Config
    for key in path:
        section = section.model_fields[key].annotation  # type: ignore[assignment]
    for name in section.model_fields:
        with contextlib.suppress(ValidationError):
            section.model_validate({name: item["input"]})
            return f"{name}={item['input']}"
    name, field = next(iter(section.model_fields.items()))
    return f"{name}={field.default}"


def _type_of(path: list[str]) -> str:
    """What the schema says of a key, for error messages."""
    if path[:2] == ["train", "none_recipes"] and len(path) > 3:
        path = ["train", *path[3:]]
    section: Any = Config
    field = None
    for key in path:
        if not (isinstance(section, type) and issubclass(section, BaseModel)):
            break
        field = section.model_fields.get(key)
        if field is None:
            return ""
        section = field.annotation
    if field is None:
        return ""
    kind = field.annotation
    if get_origin(kind) in (Union, types.UnionType):
        shown = " or ".join(getattr(a, "__name__", str(a)) for a in get_args(kind))
    else:
        shown = getattr(kind, "__name__", str(kind))
    about = f" ({field.description})" if field.description else ""
    return f"; it is {shown}{about}"
