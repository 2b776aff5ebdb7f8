"""Rules about objects together: selectors, references, ports, host names, queues."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from itertools import chain
from typing import Any

from cluster.manifests.objects import (
    Object,
    Pod,
    cluster_of,
    matches,
    pods_of,
    quantity,
    requests_of,
    selected,
)
from cluster.manifests.render import World

QUEUE = "kueue.x-k8s.io/queue-name"
HEAD_SERVICE = {"ray.io/node-type": "head"}
"""Labels of the service that KubeRay makes for a head, as far as they are the same for every cluster."""
TOKEN_KEY = "auth_token"


def selector(one: Object, world: World) -> Iterator[str]:
    """What an object selects exists: pods, or the service that KubeRay makes for a head."""
    kind, spec = one["kind"], one.get("spec", {})
    every = list(chain.from_iterable(pods_of(other) for other in world.objects))
    if kind == "Deployment":
        wanted, own = spec["selector"]["matchLabels"], next(pods_of(one)).labels
        if not matches(wanted, own):
            yield f"selector {wanted} is not among the template's labels {own}"
    elif kind == "Service" and not selected(spec["selector"], every):
        yield f"selector {spec['selector']} matches no pod"
    elif kind == "PodMonitor" and not selected(spec["selector"]["matchLabels"], every):
        yield f"selector {spec['selector']['matchLabels']} matches no pod"
    elif kind == "ServiceMonitor" and not matches(spec["selector"]["matchLabels"], HEAD_SERVICE):
        yield f"selector {spec['selector']['matchLabels']} matches no service of KubeRay"
    elif kind == "NetworkPolicy":
        peers = chain.from_iterable(rule.get("from", []) for rule in spec.get("ingress", []))
        near = [peer["podSelector"] for peer in peers if "namespaceSelector" not in peer]
        for chosen in [spec["podSelector"], *near]:
            if not selected(chosen["matchLabels"], every):
                yield f"podSelector {chosen['matchLabels']} matches no pod"


def reference(one: Object, world: World) -> Iterator[str]:
    """Every Secret, ConfigMap, claim and account that a pod names is there, with the key."""
    for pod in pods_of(one):
        account = pod.spec.get("serviceAccountName")
        if account is not None and world.named("ServiceAccount", account) is None:
            yield f"{pod.where}: there is no ServiceAccount {account}"
        for kind, name, key in _named(pod):
            keys = _keys(kind, name, world)
            if keys is None:
                yield f"{pod.where}: there is no {kind} {name}"
            elif key is not None and key not in keys:
                yield f"{pod.where}: {kind} {name} has no key {key}"


def ports(one: Object, world: World) -> Iterator[str]:
    """Ports that services and monitors name, or that policies open, are ports of the pods behind them."""
    kind, spec = one["kind"], one.get("spec", {})
    every = list(chain.from_iterable(pods_of(other) for other in world.objects))
    if kind == "Service":
        named = {port.get("targetPort", port["port"]) for port in spec["ports"]}
        behind = selected(spec["selector"], every)
    elif kind in ("PodMonitor", "ServiceMonitor"):
        endpoints = spec.get("podMetricsEndpoints", spec.get("endpoints", []))
        named = {endpoint["port"] for endpoint in endpoints}
        behind = selected(spec["selector"]["matchLabels"], every)
    elif kind == "NetworkPolicy":
        opened = chain.from_iterable(rule.get("ports", []) for rule in spec.get("ingress", []))
        named = {port["port"] for port in opened}
        behind = selected(spec["podSelector"]["matchLabels"], every)
    else:
        return
    declared = {
        port.get(key)
        for pod in behind
        for container in pod.containers
        for port in container.get("ports", [])
        for key in ("name", "containerPort")
    }
    for port in sorted(named - declared, key=str):
        yield f"port {port} is no port of the pods that are selected"


def mlflow_host(one: Object, world: World) -> Iterator[str]:
    """The name under which jobs reach MLflow is one that its server answers to, with a login."""
    if one["kind"] != "Deployment" or world.runtime is None:
        return
    arguments = one["spec"]["template"]["spec"]["containers"][0].get("args", [])
    given = dict(argument.partition("=")[::2] for argument in arguments)
    host = world.runtime["tracking_uri"].removeprefix("http://")
    if host not in given.get("--allowed-hosts", "").split(","):
        yield f"--allowed-hosts lacks {host}, so jobs would get 403"
    if given.get("--app-name") != "basic-auth":
        yield "--app-name=basic-auth is missing: anyone could write"
    service = world.named("Service", host.partition(":")[0])
    if service is None or host.partition(":")[2] not in {
        str(port["port"]) for port in service["spec"]["ports"]
    }:
        yield f"no Service answers at {host}"


def queue(one: Object, world: World) -> Iterator[str]:
    """A job with a queue can be admitted: the queue is there, the size is fixed and within the quota."""
    if (
        one["kind"] == "LocalQueue"
        and world.named("ClusterQueue", one["spec"]["clusterQueue"]) is None
    ):
        yield f"there is no ClusterQueue {one['spec']['clusterQueue']}"
    if one["kind"] == "ClusterQueue":
        for flavor in _flavors(one):
            if world.named("ResourceFlavor", flavor["name"]) is None:
                yield f"there is no ResourceFlavor {flavor['name']}"
    name = one["metadata"].get("labels", {}).get(QUEUE)
    cluster = cluster_of(one)
    if name is None or cluster is None:
        return
    local = world.named("LocalQueue", name)
    if local is None:
        yield f"there is no LocalQueue {name}"
        return
    if cluster.get("enableInTreeAutoscaling"):
        yield "Kueue does not admit an autoscaled cluster"
    quota: dict[str, Decimal] = {}
    for flavor in _flavors(world.named("ClusterQueue", local["spec"]["clusterQueue"])):
        for resource in flavor["resources"]:
            quota[resource["name"]] = quantity(resource["nominalQuota"])
    for resource, value in _size(one).items():
        if resource not in quota:
            yield f"the queue covers no {resource}"
        elif value > quota[resource]:
            yield f"{resource}: the job asks for {value}, the queue has {quota[resource]}"


def _size(one: Object) -> dict[str, Decimal]:
    total: dict[str, Decimal] = {}
    for pod in pods_of(one):
        count = pod.group.get("replicas", 1) if pod.group is not None else 1
        for resource, value in requests_of(pod).items():
            total[resource] = total.get(resource, Decimal(0)) + count * value
    return total


def _flavors(queue: Object | None) -> Iterator[Object]:
    for group in queue["spec"]["resourceGroups"] if queue else []:
        yield from group["flavors"]


def _named(pod: Pod) -> Iterator[tuple[str, str, str | None]]:
    """(kind, name, key or None) of what must exist for the pod."""
    for secret in pod.spec.get("imagePullSecrets", []):
        yield "Secret", secret["name"], None
    for volume in pod.spec.get("volumes", []):
        if "persistentVolumeClaim" in volume:
            yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"], None
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"], None
        if "secret" in volume:
            yield "Secret", volume["secret"]["secretName"], None
    for container in pod.containers:
        for source in container.get("envFrom", []):
            yield from _source(source, "secretRef", "configMapRef")
        for variable in container.get("env", []):
            yield from _source(variable.get("valueFrom", {}), "secretKeyRef", "configMapKeyRef")


def _source(source: Any, secret: str, config: str) -> Iterator[tuple[str, str, str | None]]:
    for field, kind in ((secret, "Secret"), (config, "ConfigMap")):
        if field in source and not source[field].get("optional"):
            yield kind, source[field]["name"], source[field].get("key")


def _keys(kind: str, name: str, world: World) -> frozenset[str] | None:
    """Keys of a Secret or ConfigMap, or nothing of other kinds; None if it is not there."""
    found = world.named(kind, name)
    if found is not None:
        return frozenset(found.get("data", {}))
    if kind == "Secret" and name in world.secrets:
        return world.secrets[name]
    owner = world.named("RayCluster", name) if kind == "Secret" else None
    # The operator makes a Secret of the cluster's name.
    return None if owner is None else frozenset({TOKEN_KEY})
