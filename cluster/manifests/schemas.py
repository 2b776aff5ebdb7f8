"""Strict offline validation: custom resources against CRD schemas, core objects against kubernetes-validate."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

from cluster.manifests.objects import Object

PLACE = "SSAT_CRDS"
"""Environment variable: the folder with kuberay/<release>/, kueue/ and prometheus-operator/."""
KUBERNETES = ("1.32", "1.37")
"""Releases that core objects are validated against."""
CUSTOM = {
    "ray.io": "kuberay",
    "kueue.x-k8s.io": "kueue",
    "monitoring.coreos.com": "prometheus-operator",
}

KINDS = {"additionalProperties": "unknown-field", "type": "wrong-type", "required": "missing-field"}
"""Our names for what jsonschema finds."""


def crds() -> Path | None:
    """The folder of CRD schemas, or None where the variable is unset."""
    place = os.environ.get(PLACE)
    return Path(place) if place else None


def folder_of(one: Object) -> str | None:
    """Which folder has the object's CRD; None for core objects."""
    return CUSTOM.get(str(one.get("apiVersion")).partition("/")[0])


def targets(one: Object, folder: Path) -> list[str]:
    """What an object is validated against: releases of KubeRay or Kubernetes, or the one CRD there is."""
    kind = folder_of(one)
    if kind is None:
        return [f"kubernetes {release}" for release in KUBERNETES]
    if kind == "kuberay":
        return [f"kuberay {path.name}" for path in sorted((folder / kind).iterdir())]
    return [kind]


def errors(one: Object, target: str, folder: Path) -> list[str]:
    """What a schema finds wrong with an object: `unknown-field: spec.x: ...`."""
    family, _, release = target.partition(" ")
    if family == "kubernetes":
        return _core_errors(one, release)
    # A CRD's schema leaves the metadata to the server, which checks it as of any object.
    bare = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": one.get("metadata", {})}
    found = _core_errors(bare, KUBERNETES[-1])
    key = (str(one.get("apiVersion")), str(one.get("kind")))
    validators = _validators(folder / family / release)
    if key not in validators:
        return [*found, f"no-schema: {key[0]} {key[1]}"]
    return [*found, *(_line(error) for error in validators[key].iter_errors(one))]


def _core_errors(one: Object, release: str) -> list[str]:
    try:
        kubernetes_validate.validate(one, release, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [_line(error)]
    except kubernetes_validate.SchemaNotFoundError as error:
        return [f"no-schema: {error.message}"]
    return []


def _line(error: Any) -> str:
    what = KINDS.get(error.validator, error.validator)
    place = ".".join(str(part) for part in error.absolute_path) or "object"
    return f"{what}: {place}: {error.message}"


@cache
def _validators(folder: Path) -> dict[tuple[str, str], Any]:
    """A strict validator for each (apiVersion, kind) of the CRDs in a folder."""
    found = {}
    for crd in _definitions(folder):
        spec = crd["spec"]
        for version in spec["versions"]:
            schema = strict(version["schema"]["openAPIV3Schema"])
            key = (f"{spec['group']}/{version['name']}", spec["names"]["kind"])
            found[key] = jsonschema.Draft202012Validator(schema)
    return found


def _definitions(folder: Path) -> Iterator[Object]:
    for path in sorted(folder.glob("*.yaml")):
        with open(path) as file:
            yield from yaml.load_all(file, Loader=yaml.CSafeLoader)


def strict(schema: Any) -> Any:
    """A structural schema as JSON schema in which a field that it does not name is an error."""
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    found = {key: value for key, value in schema.items() if not key.startswith("x-kubernetes")}
    for key in ("items", "additionalProperties"):
        if key in found:
            found[key] = strict(found[key])
    if "properties" in found:
        found["properties"] = {key: strict(value) for key, value in found["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            found.setdefault("additionalProperties", False)
    if found.pop("nullable", False) and isinstance(found.get("type"), str):
        found["type"] = [found["type"], "null"]
    return found
