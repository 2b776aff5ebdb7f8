"""Rules about who may connect to whom: nobody more than the guide says, and nobody less than a job needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from cluster.manifests.objects import Object, Pod, matches, pods_of, selected
from cluster.manifests.render import World

OPEN_PORTS = {8265, 8080, 44217, 44227, 5000}
"""Dashboard and job API, metrics of nodes, autoscaler and dashboard, MLflow."""
JOB_API = 8265
NAMESPACE = "kubernetes.io/metadata.name"
"""Label that Kubernetes gives every namespace: its name."""
Port = int | str | None
"""A number, a name, or None: any port."""


@dataclass(frozen=True)
class Client:
    """Who connects: for messages, and its pod's labels and namespace, by which a policy knows it."""

    who: str
    labels: dict[str, str]
    namespace: str


OPERATOR = Client("the operator", {"app.kubernetes.io/name": "kuberay-operator"}, "kuberay-system")
"""Where the guide installs it, under the labels of its chart."""
PROMETHEUS = Client("Prometheus", {}, "monitoring")


def exposed(one: Object, world: World) -> Iterator[str]:
    """A policy covers every Ray pod; from outside Ray it lets the dashboard's and the metrics ports be reached only."""
    for pod in pods_of(one):
        if pod.group is not None and not _policies_of(pod, world):
            yield f"{pod.where}: no NetworkPolicy is about this pod"
    if one["kind"] != "NetworkPolicy":
        return
    own = one["spec"]["podSelector"]["matchLabels"]
    for rule in one["spec"].get("ingress", []):
        if not rule.get("from"):
            yield "a rule without `from` lets everyone in"
        inside = all(
            peer.get("podSelector", {}).get("matchLabels") == own for peer in rule.get("from", [])
        )
        opened = {port.get("port") for port in rule.get("ports", [])}
        if not inside and (not opened or not opened <= OPEN_PORTS):
            yield f"others reach ports {sorted(opened - OPEN_PORTS, key=str) or 'of any number'}"


def reachable(one: Object, world: World) -> Iterator[str]:
    """Who has to reach a pod is let in by a policy, if there are any about that pod."""
    if one["kind"] == "NetworkPolicy" and "Egress" in one["spec"].get("policyTypes", []):
        yield "limits what its pods connect to, which no rule here could judge"
    space = one["metadata"].get("namespace", "default")
    for client, pod, port in _needed(one, world, space):
        policies = _policies_of(pod, world)
        rules = chain.from_iterable(policy["spec"].get("ingress", []) for policy in policies)
        open_to_it = (_from(rule, client, space) and _at(rule, pod, port) for rule in rules)
        if policies and not any(open_to_it):
            yield f"{client.who} cannot reach {pod.where} at port {port or 'any'}"


def _needed(one: Object, world: World, space: str) -> Iterator[tuple[Client, Pod, Port]]:
    """Who connects to which pod of a Ray cluster, or from one to MLflow, and at which port."""
    nodes = [pod for pod in pods_of(one) if pod.group is not None]
    clients = [Client(node.where, node.labels, space) for node in nodes]
    for node in nodes:
        yield from ((client, node, None) for client in clients)
        yield from ((PROMETHEUS, node, port) for port in _monitored(node, world))
        if node.is_head:
            yield OPERATOR, node, JOB_API
            yield from ((client, node, JOB_API) for client in _submitters(one, world, space))
    for pod, port in _mlflow(world) if nodes else []:
        yield from ((client, pod, port) for client in clients)


def _submitters(one: Object, world: World, space: str) -> Iterator[Client]:
    """Pods that hand jobs to a cluster: a RayJob's own, and those of CronJobs."""
    crons = [other for other in world.objects if other["kind"] == "CronJob"]
    for pod in chain.from_iterable(pods_of(other) for other in (one, *crons)):
        if pod.group is None:
            yield Client(f"the submitter ({pod.where})", pod.labels, space)


def _monitored(node: Pod, world: World) -> Iterator[str]:
    """Names of a node's ports that monitors look at; a head has a service, through which they do."""
    for other in world.objects:
        spec = other.get("spec", {})
        if other["kind"] == "ServiceMonitor" and node.is_head:
            yield from (endpoint["port"] for endpoint in spec["endpoints"])
        elif other["kind"] == "PodMonitor" and matches(
            spec["selector"]["matchLabels"], node.labels
        ):
            yield from (endpoint["port"] for endpoint in spec["podMetricsEndpoints"])


def _mlflow(world: World) -> Iterator[tuple[Pod, int | str]]:
    """Pods behind the address at which jobs reach MLflow, and their port."""
    if world.runtime is None:
        return
    host, _, number = world.runtime["tracking_uri"].removeprefix("http://").partition(":")
    service = world.named("Service", host)
    if service is None:
        return
    pods = list(chain.from_iterable(pods_of(other) for other in world.objects))
    behind = selected(service["spec"]["selector"], pods)
    for port in service["spec"]["ports"]:
        if str(port["port"]) == number:
            yield from ((pod, port.get("targetPort", port["port"])) for pod in behind)


def _policies_of(pod: Pod, world: World) -> list[Object]:
    """The policies that decide who connects to a pod; without one everybody may."""
    return [
        other
        for other in world.objects
        if other["kind"] == "NetworkPolicy"
        and matches(other["spec"]["podSelector"]["matchLabels"], pod.labels)
        and "Ingress" in other["spec"].get("policyTypes", [])
    ]


def _from(rule: Any, client: Client, space: str) -> bool:
    """Whether a policy's rule, in a namespace, is about a client."""
    here = {"matchLabels": {NAMESPACE: space}}
    for peer in rule.get("from", []):
        spaces = peer.get("namespaceSelector", here).get("matchLabels", {})
        pods = peer.get("podSelector", {}).get("matchLabels", {})
        near = matches(spaces, {NAMESPACE: client.namespace}) and "ipBlock" not in peer
        if near and matches(pods, client.labels):
            return True
    return not rule.get("from")


def _at(rule: Any, pod: Pod, port: Port) -> bool:
    """Whether a policy's rule opens a pod's port, by number or by name."""
    opened = {one.get("port") for one in rule.get("ports", [])}
    if not opened or None in opened:
        return True
    declared = chain.from_iterable(container.get("ports", []) for container in pod.containers)
    names = [{one.get("name"), one["containerPort"]} for one in declared]
    return any(port in both and both & opened for both in names if port is not None)
