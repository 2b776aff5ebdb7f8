"""Every kustomization of the repository, rendered by `kubectl kustomize`, and what surrounds it."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from cluster.manifests.generate import KUBERAY, OVERLAYS, RAYJOBS, ROOT, SCRIPTS
from cluster.manifests.objects import Object

LOCK = "requirements.lock"
GUIDE = "docs/kubernetes.md"
_MADE = re.compile(r"kubectl create secret (?:generic|docker-registry) ([\w-]+)([^`]*?)```")
_KEY = re.compile(r"--from-literal[= ]([\w.-]+)=")


@dataclass(frozen=True)
class World:
    """What a rule may look at besides the object.

    Attributes:
        objects: all that is applied together or before.
        secrets: keys of the Secrets that the guide makes by hand, by name.
        scripts: of `jobs/`, without suffix.
        ray: version of Ray in `requirements.lock`.
    """

    objects: tuple[Object, ...]
    secrets: dict[str, frozenset[str]]
    scripts: frozenset[str]
    ray: str

    @property
    def runtime(self) -> dict[str, Any] | None:
        """The section `runtime` of the configuration that all jobs read, if it is among the objects."""
        config = self.named("ConfigMap", "ssat-run")
        return None if config is None else _section(config["data"]["run.yaml"])

    def named(self, kind: str, name: str) -> Object | None:
        """The object of this kind and name, if there is one."""
        found = (
            one for one in self.objects if (one["kind"], one["metadata"]["name"]) == (kind, name)
        )
        return next(found, None)


@cache
def _section(text: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.load(text, Loader=yaml.CSafeLoader)["runtime"]
    return found


@dataclass(frozen=True)
class Rendering:
    """The objects of one kustomization, by its path below `cluster/kuberay`."""

    path: str
    objects: tuple[Object, ...]
    world: World


def kubectl() -> str | None:
    """The path of `kubectl`, or None."""
    return shutil.which("kubectl")


def kubectl_versions() -> list[str]:
    """`Client v1.35.0` and `Kustomize v5.7.1`, for example."""
    done = subprocess.run(
        ["kubectl", "version", "--client"], capture_output=True, text=True, check=True
    )
    found = re.findall(r"^(\w+) Version: (\S+)", done.stdout, re.MULTILINE)
    return [f"{name} {number}" for name, number in found]


def render(folder: Path) -> tuple[Object, ...]:
    """The objects of one kustomization.

    Raises:
        subprocess.CalledProcessError: it cannot be rendered.
    """
    done = subprocess.run(
        ["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=True
    )
    return tuple(yaml.load_all(done.stdout, Loader=yaml.CSafeLoader))


@cache
def renderings() -> tuple[Rendering, ...]:
    """All kustomizations that a person applies; a job's surroundings are its overlay's platform and quota."""
    found = []
    for overlay in OVERLAYS:
        folder = KUBERAY / "overlays" / overlay
        first = [path for path in ("platform", "quota") if (ROOT / folder / path).is_dir()]
        rest = ["cluster", "files", *(f"jobs/{name}" for name in RAYJOBS)]
        rendered = {path: render(ROOT / folder / path) for path in (*first, *rest)}
        shared = tuple(one for path in first for one in rendered[path])
        cluster = rendered["cluster"]
        for path, objects in rendered.items():
            around = (*shared, *cluster) if path in first else (*shared, *objects)
            found.append(Rendering(f"overlays/{overlay}/{path}", objects, world(around)))
    return tuple(found)


def world(objects: tuple[Object, ...]) -> World:
    """These objects, and what the repository says about the rest."""
    return World(objects, made_by_hand(), frozenset(SCRIPTS), locked_ray())


@cache
def made_by_hand() -> dict[str, frozenset[str]]:
    """Secrets that the guide has the reader make: their keys, by name."""
    text = (ROOT / GUIDE).read_text()
    return {name: frozenset(_KEY.findall(rest)) for name, rest in _MADE.findall(text)}


@cache
def locked_ray() -> str:
    """Version of Ray in the lock file."""
    found = re.search(r"^ray==(\S+)", (ROOT / LOCK).read_text(), re.MULTILINE)
    assert found is not None
    return found[1]
