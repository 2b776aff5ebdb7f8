"""Kubernetes objects as rendered, and the pods that they describe."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

Object = dict[str, Any]
_SUFFIX: dict[str, int | Decimal] = {
    "": 1, "m": Decimal("0.001"), "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40,
}  # fmt: skip
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)([kMGT]|[KMGT]i|m|)")


@dataclass(frozen=True)
class Pod:
    """A pod template somewhere in an object.

    Attributes:
        where: path in the object, such as `workerGroupSpecs[0]`.
        labels: its own, and those that KubeRay adds.
        group: the Ray group that it belongs to; None outside Ray.
    """

    where: str
    labels: dict[str, str]
    spec: Object
    group: Object | None = None

    @property
    def is_head(self) -> bool:
        return self.labels.get("ray.io/node-type") == "head"

    @property
    def containers(self) -> list[Object]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]


def name_of(one: Object) -> str:
    """`RayJob/ssat-train`."""
    return f"{one.get('kind')}/{one.get('metadata', {}).get('name')}"


def cluster_of(one: Object) -> Object | None:
    """The spec of the Ray cluster that an object describes, if it describes one."""
    if one["kind"] == "RayCluster":
        return dict(one["spec"])
    return one["spec"].get("rayClusterSpec") if one["kind"] == "RayJob" else None


def groups_of(cluster: Object) -> list[tuple[str, Object]]:
    """The head group, then the worker groups, each with its path."""
    workers = cluster.get("workerGroupSpecs", [])
    named = [(f"workerGroupSpecs[{index}]", group) for index, group in enumerate(workers)]
    return [("headGroupSpec", cluster["headGroupSpec"]), *named]


def pods_of(one: Object) -> Iterator[Pod]:
    """Every pod template of an object."""
    spec = one.get("spec", {})
    if one["kind"] == "Pod":
        yield _pod("spec", one)
    elif one["kind"] == "Deployment":
        yield _pod("template", spec["template"])
    elif one["kind"] == "CronJob":
        yield _pod("jobTemplate", spec["jobTemplate"]["spec"]["template"])
    if "submitterPodTemplate" in spec:
        yield _pod("submitterPodTemplate", spec["submitterPodTemplate"])
    cluster = cluster_of(one)
    for where, group in groups_of(cluster) if cluster else []:
        node = "head" if where == "headGroupSpec" else "worker"
        added = {"ray.io/node-type": node, "ray.io/is-ray-node": "yes"}
        yield _pod(where, group["template"], added, group)


def _pod(
    where: str, template: Object, added: dict[str, str] | None = None, group: Object | None = None
) -> Pod:
    labels = {**template.get("metadata", {}).get("labels", {}), **(added or {})}
    return Pod(where, labels, template["spec"], group)


def matches(wanted: dict[str, str], labels: dict[str, str]) -> bool:
    """Whether labels have all that a selector wants."""
    return wanted.items() <= labels.items()


def selected(wanted: dict[str, str], pods: list[Pod]) -> list[Pod]:
    """The pods whose labels have all that a selector wants."""
    return [pod for pod in pods if matches(wanted, pod.labels)]


def quantity(text: object) -> Decimal:
    """A resource quantity, such as 500m or 4Gi, in cores, bytes or pieces.

    Raises:
        ValueError: it is none.
    """
    found = _QUANTITY.fullmatch(str(text))
    if found is None:
        raise ValueError(f"{text!r} is no resource quantity")
    return Decimal(found[1]) * _SUFFIX[found[2]]


def requests_of(pod: Pod) -> dict[str, Decimal]:
    """What the scheduler counts for a pod: requests, or limits where there are none."""
    total: dict[str, Decimal] = {}
    for container in pod.spec["containers"]:
        resources = container.get("resources", {})
        for name, value in {**resources.get("limits", {}), **resources.get("requests", {})}.items():
            total[name] = total.get(name, Decimal(0)) + quantity(value)
    return total
