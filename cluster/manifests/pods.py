"""Rules about one pod at a time: resources, memory, volumes, security, nodes."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

from cluster.manifests.objects import Object, Pod, cluster_of, pods_of, quantity
from cluster.manifests.render import World

GPU = "nvidia.com/gpu"
SPOT_LABELS = (
    "karpenter.sh/capacity-type",
    "eks.amazonaws.com/capacityType",
    "cloud.google.com/gke-spot",
    "kubernetes.azure.com/scalesetpriority",
)
SPOT_TAINTS = (*SPOT_LABELS, "spot")


def limits(one: Object, world: World) -> Iterator[str]:
    """Requests are at most the limits; memory has both; a GPU is requested as it is limited."""
    for pod in pods_of(one):
        for container in pod.containers:
            resources = container.get("resources", {})
            asked, allowed = resources.get("requests", {}), resources.get("limits", {})
            for name, value in asked.items():
                if name in allowed and quantity(value) > quantity(allowed[name]):
                    yield f"{pod.where}: request {name} {value} is above the limit {allowed[name]}"
            if "memory" not in allowed or "memory" not in asked:
                yield f"{pod.where}: {container['name']} has no request or no limit of memory"


def shared_memory(one: Object, world: World) -> Iterator[str]:
    """Ray's object store lies in /dev/shm: in memory, of a set size, within the container's memory."""
    for pod in _ray(one):
        container, group = pod.spec["containers"][0], pod.group or {}
        mounted = [
            mount["name"] for mount in container["volumeMounts"] if mount["mountPath"] == "/dev/shm"
        ]
        found = [volume for volume in pod.spec["volumes"] if volume["name"] in mounted]
        empty = found[0].get("emptyDir", {}) if found else {}
        if empty.get("medium") != "Memory" or "sizeLimit" not in empty:
            yield f"{pod.where}: /dev/shm must be an emptyDir in memory with a sizeLimit"
            continue
        size = quantity(empty["sizeLimit"])
        memory = quantity(container["resources"].get("limits", {}).get("memory", 0))
        store = Decimal(group.get("rayStartParams", {}).get("object-store-memory", 0))
        if not 0 < store <= size:
            yield f"{pod.where}: object-store-memory {store} must be set, and at most /dev/shm ({size})"
        if size > memory / 2:
            yield f"{pod.where}: /dev/shm ({size}) is more than half of the memory limit ({memory})"


def volumes(one: Object, world: World) -> Iterator[str]:
    for pod in pods_of(one):
        defined = [volume["name"] for volume in pod.spec.get("volumes", [])]
        mounted = set()
        for container in pod.containers:
            mounts = container.get("volumeMounts", [])
            mounted |= {mount["name"] for mount in mounts}
            paths = [mount["mountPath"] for mount in mounts]
            for path in sorted({path for path in paths if paths.count(path) > 1}):
                yield f"{pod.where}: {path} is mounted twice"
        for name in sorted(mounted - set(defined)):
            yield f"{pod.where}: volume {name} is mounted and not defined"
        for name in sorted(set(defined) - mounted):
            yield f"{pod.where}: volume {name} is defined and not mounted"
    cluster = cluster_of(one) or {}
    for mount in cluster.get("autoscalerOptions", {}).get("volumeMounts", []):
        if mount["name"] not in {volume["name"] for volume in _head(one).spec.get("volumes", [])}:
            yield f"autoscalerOptions: volume {mount['name']} is mounted and the head has none"


def locked_down(one: Object, world: World) -> Iterator[str]:
    """Not root, no way up, a read-only root file system, and the writable places that Ray needs beside it."""
    for pod in pods_of(one):
        whole = pod.spec.get("securityContext", {})
        if whole.get("runAsNonRoot") is not True or not whole.get("runAsUser"):
            yield f"{pod.where}: runAsNonRoot and runAsUser must be set"
        for container in pod.containers:
            own = container.get("securityContext", {})
            dropped = own.get("capabilities", {}).get("drop", [])
            if own.get("allowPrivilegeEscalation") is not False or "ALL" not in dropped:
                yield f"{pod.where}: {container['name']} keeps privileges"
            if own.get("readOnlyRootFilesystem") is not True:
                yield f"{pod.where}: {container['name']} can write its root file system"
            writable = {
                mount["mountPath"]
                for mount in container.get("volumeMounts", [])
                if not mount.get("readOnly")
            }
            needed = {"/tmp", "/tmp/ray"} if pod.group is not None else {"/tmp"}
            for path in sorted(needed - writable):
                yield f"{pod.where}: {container['name']} has no volume at {path}"
    options = (cluster_of(one) or {}).get("autoscalerOptions")
    if options is None:
        return
    if options.get("securityContext", {}).get("readOnlyRootFilesystem") is not True:
        yield "autoscalerOptions: the sidecar can write its root file system"
    if "/tmp" not in {mount["mountPath"] for mount in options.get("volumeMounts", [])}:
        yield "autoscalerOptions: the sidecar has no volume at /tmp"


def safe_driver(one: Object, world: World) -> Iterator[str]:
    """The driver runs on the head, so the head stays off spot nodes; workers do without a safe node."""
    for pod in _ray(one):
        taints = {toleration.get("key") for toleration in pod.spec.get("tolerations", [])}
        if not pod.is_head:
            if not taints & set(SPOT_TAINTS):
                yield f"{pod.where}: tolerates no spot nodes"
            continue
        affinity = pod.spec.get("affinity", {}).get("nodeAffinity", {})
        needed = affinity.get("requiredDuringSchedulingIgnoredDuringExecution", {})
        terms = needed.get("nodeSelectorTerms", [])
        for term in terms or [{}]:
            refused = {
                expression["key"]
                for expression in term.get("matchExpressions", [])
                if expression["operator"] == "NotIn"
            }
            for label in sorted(set(SPOT_LABELS) - refused):
                yield f"{pod.where}: may land on a spot node ({label})"
        for taint in sorted(taints & set(SPOT_TAINTS)):
            yield f"{pod.where}: tolerates the spot taint {taint}"


def gpu_node(one: Object, world: World) -> Iterator[str]:
    """A pod with a GPU finds its nodes and passes their taint; NCCL knows its network."""
    for pod in _ray(one):
        container = pod.spec["containers"][0]
        if GPU not in container["resources"].get("limits", {}):
            continue
        if not any(one.get("key") == GPU for one in pod.spec.get("tolerations", [])):
            yield f"{pod.where}: does not tolerate the taint {GPU}"
        if not pod.spec.get("nodeSelector"):
            yield f"{pod.where}: has no nodeSelector for GPU nodes"
        if "NCCL_SOCKET_IFNAME" not in {one["name"] for one in container.get("env", [])}:
            yield f"{pod.where}: NCCL_SOCKET_IFNAME is not set"


def _head(one: Object) -> Pod:
    return next(pod for pod in pods_of(one) if pod.is_head)


def _ray(one: Object) -> list[Pod]:
    return [pod for pod in pods_of(one) if pod.group is not None]
