"""What no schema says: the operator's own checks, and what these manifests promise. Each rule has a name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cluster.manifests import pods, policies, wiring
from cluster.manifests.objects import (
    Object,
    cluster_of,
    groups_of,
    name_of,
    pods_of,
    quantity,
)
from cluster.manifests.render import World
from ssat_ray.config import RuntimeConfig
from ssat_ray.needs import totals

Rule = Callable[[Object, World], Iterator[str]]
LONGEST = {"RayCluster": 53, "RayJob": 47, "CronJob": 52}
"""KubeRay appends 6 characters to a RayJob's name for its cluster, and 10 to a cluster's for a Service."""
MODES = ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
START_RESOURCES = ("num-cpus", "num-gpus", "memory", "resources")
FIRST_WITH_TOKENS = (2, 52)
RESOURCES = {"CPU": "cpu", "GPU": "nvidia.com/gpu"}
_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_RAY_TAG = re.compile(r":[\w.]+-ray(\d+\.\d+\.\d+)-(cpu|gpu)$")
_ENTRYPOINT = re.compile(r"python /opt/ssat/jobs/([\w-]+)\.py (\S+) --name (\S+)")


@dataclass(frozen=True)
class Finding:
    """What one rule says about one object."""

    rule: str
    name: str
    text: str


def check(one: Object, world: World) -> list[Finding]:
    """Everything that the rules find wrong with an object."""
    return [
        Finding(rule, name_of(one), text)
        for rule, look in RULES.items()
        for text in look(one, world)
    ]


def name_length(one: Object, world: World) -> Iterator[str]:
    longest = LONGEST.get(one["kind"])
    if longest is not None and len(one["metadata"]["name"]) > longest:
        yield f"the name has {len(one['metadata']['name'])} characters, at most {longest} are allowed"


def dns_label(one: Object, world: World) -> Iterator[str]:
    cluster = cluster_of(one)
    groups = [group["groupName"] for _, group in groups_of(cluster)[1:]] if cluster else []
    names = [one["metadata"]["name"], *groups] if cluster else []
    for name in names:
        if not _DNS_1035.fullmatch(name):
            yield f"{name!r} is no DNS-1035 label: a-z, 0-9 and -, a letter first"


def replicas(one: Object, world: World) -> Iterator[str]:
    cluster = cluster_of(one)
    for where, group in groups_of(cluster)[1:] if cluster else []:
        least, now, most = (group[key] for key in ("minReplicas", "replicas", "maxReplicas"))
        if not least <= now <= most:
            yield f"{where}: minReplicas {least}, replicas {now}, maxReplicas {most}"


def shutdown(one: Object, world: World) -> Iterator[str]:
    spec = one["spec"] if one["kind"] == "RayJob" else None
    if spec is None:
        return
    if not spec.get("shutdownAfterJobFinishes"):
        extra = (
            " although ttlSecondsAfterFinished is set"
            if spec.get("ttlSecondsAfterFinished")
            else ""
        )
        yield f"shutdownAfterJobFinishes is off{extra}: the cluster would stay"
    elif spec.get("ttlSecondsAfterFinished", 0) <= 0:
        yield "ttlSecondsAfterFinished is missing: logs go with the cluster at once"


def submission_mode(one: Object, world: World) -> Iterator[str]:
    if one["kind"] != "RayJob":
        return
    mode = one["spec"].get("submissionMode", MODES[0])
    if mode not in MODES:
        yield f"submissionMode {mode!r}; allowed: {', '.join(MODES)}"
    if mode == "SidecarMode" and {"submitterPodTemplate", "submitterConfig"} & set(one["spec"]):
        yield "SidecarMode takes neither submitterPodTemplate nor submitterConfig"


def job_limits(one: Object, world: World) -> Iterator[str]:
    if one["kind"] != "RayJob":
        return
    if one["spec"].get("activeDeadlineSeconds", 0) <= 0:
        yield "activeDeadlineSeconds must be set: a job that hangs would hold its nodes"
    if one["spec"].get("backoffLimit", -1) < 0:
        yield "backoffLimit must be set, 0 or more"


def autoscaler(one: Object, world: World) -> Iterator[str]:
    cluster = cluster_of(one)
    if not cluster:
        return
    options = cluster.get("autoscalerOptions", {})
    if not cluster.get("enableInTreeAutoscaling"):
        if options:
            yield "autoscalerOptions without enableInTreeAutoscaling"
        return
    if options.get("version") != "v2":
        yield f"autoscalerOptions.version is {options.get('version')!r}, not 'v2'"
    for pod in pods_of(one):
        policy = pod.spec.get("restartPolicy")
        if pod.group is not None and policy != "Never":
            yield f"{pod.where}: restartPolicy is {policy!r}; autoscaler v2 needs 'Never'"


def resources_once(one: Object, world: World) -> Iterator[str]:
    cluster = cluster_of(one)
    for where, group in groups_of(cluster) if cluster else []:
        started = [key for key in START_RESOURCES if key in group.get("rayStartParams", {})]
        if group.get("resources") and started:
            yield f"{where}: resources and rayStartParams.{started[0]}; KubeRay refuses both"
        elif group.get("resources"):
            yield f"{where}: resources repeats the pod's limits, from which KubeRay takes Ray's"
        elif where != "headGroupSpec" and started:
            yield f"{where}: rayStartParams.{started[0]} repeats the pod's limits"


def idle_head(one: Object, world: World) -> Iterator[str]:
    cluster = cluster_of(one)
    if cluster and cluster["headGroupSpec"].get("rayStartParams", {}).get("num-cpus") != "0":
        yield 'headGroupSpec.rayStartParams.num-cpus must be "0": no tasks on the head'


def token(one: Object, world: World) -> Iterator[str]:
    cluster = cluster_of(one)
    if not cluster:
        return
    if cluster.get("authOptions", {}).get("mode") != "token":
        yield "authOptions.mode must be token"
    version = str(cluster.get("rayVersion", ""))
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if numbers < FIRST_WITH_TOKENS:
        yield f"rayVersion {version!r}: tokens need 2.52 or newer"


def ray_version(one: Object, world: World) -> Iterator[str]:
    cluster = cluster_of(one)
    if cluster and cluster.get("rayVersion") != world.ray:
        yield f"rayVersion {cluster.get('rayVersion')!r}, the lock file has {world.ray}"
    for pod in pods_of(one):
        for container in pod.containers:
            found = _RAY_TAG.search(container["image"])
            if found is None:
                yield f"{pod.where}: {container['image']} does not end in -ray<version>-cpu or -gpu"
            elif found[1] != (cluster or {}).get("rayVersion", world.ray):
                yield f"{pod.where}: {container['image']} has another Ray than rayVersion"


def image_target(one: Object, world: World) -> Iterator[str]:
    """All images are of the target that the configuration needs: the guide brings no other one to the nodes."""
    config = _runtime(world)
    if config is None:
        return
    wanted = "gpu" if config.gpus_per_worker or config.gpus_per_actor else "cpu"
    for pod in pods_of(one):
        for container in pod.containers:
            found = _RAY_TAG.search(container["image"])
            if found is not None and found[2] != wanted:
                yield f"{pod.where}: {container['image']} is not of the target {wanted}, as run.yaml needs"


def entrypoint(one: Object, world: World) -> Iterator[str]:
    if one["kind"] != "RayJob":
        return
    found = _ENTRYPOINT.fullmatch(one["spec"]["entrypoint"])
    if found is None:
        yield f"{one['spec']['entrypoint']!r} is not `python SCRIPT CONFIG --name NAME`"
        return
    if found[1] not in world.scripts:
        yield f"there is no jobs/{found[1]}.py"
    head = next(pod for pod in pods_of(one) if pod.is_head)
    mounts = [mount["mountPath"] for mount in head.spec["containers"][0]["volumeMounts"]]
    if not any(found[2].startswith(f"{mount}/") for mount in mounts):
        yield f"{found[2]} is on no volume of the head"


def capacity(one: Object, world: World) -> Iterator[str]:
    """A driver refuses to start with less than its configuration asks for, but for what an autoscaler is said to bring."""
    cluster, config = cluster_of(one), _runtime(world)
    if not cluster or config is None:
        return
    grows = "maxReplicas" if cluster.get("enableInTreeAutoscaling") else "minReplicas"
    promises = {"CPU": config.max_cpus, "GPU": config.max_gpus}
    for kind, needed in totals(config).items():
        least, most = (_together(cluster, RESOURCES[kind], key) for key in ("minReplicas", grows))
        promised = promises[kind] or 0
        if promised > most:
            setting = f"runtime.max_{kind.lower()}s={promised}"
            yield f"run.yaml has {setting}, and at most {most:g} can be there"
        if max(least, promised) < needed:
            yield f"run.yaml needs {needed:g} {kind}s at the start, the least replicas have {least:g}"


def _together(cluster: Object, resource: str, replicas: str) -> float:
    """How much of a resource so many replicas of all worker groups have."""
    total = 0.0
    for _, group in groups_of(cluster)[1:]:
        limits = group["template"]["spec"]["containers"][0].get("resources", {}).get("limits", {})
        total += group[replicas] * float(quantity(limits.get(resource, 0)))
    return total


def shared_folders(one: Object, world: World) -> Iterator[str]:
    """A RayJob's second try finds what the first one did only if both places are on the volume."""
    cluster, config = cluster_of(one), _runtime(world)
    if not cluster or config is None:
        return
    for pod in pods_of(one):
        claims = {
            volume["name"]
            for volume in pod.spec.get("volumes", [])
            if "persistentVolumeClaim" in volume
        }
        kept = [
            mount["mountPath"]
            for mount in pod.spec["containers"][0].get("volumeMounts", [])
            if mount["name"] in claims
        ]
        for key in ("store", "runs") if pod.group is not None else ():
            place = getattr(config, key)
            if not any(place.startswith(f"{mount}/") for mount in kept):
                yield f"{pod.where}: runtime.{key}={place} is on no persistent volume"


def _runtime(world: World) -> RuntimeConfig | None:
    return None if world.runtime is None else RuntimeConfig.model_validate(world.runtime)


RULES: dict[str, Rule] = {
    "name-length": name_length,
    "dns-label": dns_label,
    "replicas": replicas,
    "shutdown": shutdown,
    "submission-mode": submission_mode,
    "job-limits": job_limits,
    "autoscaler": autoscaler,
    "resources-once": resources_once,
    "idle-head": idle_head,
    "token": token,
    "ray-version": ray_version,
    "image-target": image_target,
    "entrypoint": entrypoint,
    "capacity": capacity,
    "shared-folders": shared_folders,
    "limits": pods.limits,
    "shared-memory": pods.shared_memory,
    "volumes": pods.volumes,
    "locked-down": pods.locked_down,
    "safe-driver": pods.safe_driver,
    "gpu-node": pods.gpu_node,
    "selector": wiring.selector,
    "reference": wiring.reference,
    "ports": wiring.ports,
    "exposed": policies.exposed,
    "reachable": policies.reachable,
    "mlflow-host": wiring.mlflow_host,
    "queue": wiring.queue,
}
