"""Mistakes in otherwise valid manifests: each must be found, under the name of the rule that is about it."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster.manifests.objects import Object, name_of
from cluster.manifests.render import Rendering, World
from cluster.manifests.rules import check
from cluster.manifests.schemas import errors, targets

GONE = object()
"""In place of a value: the field is removed."""


@dataclass(frozen=True)
class Mutation:
    """One field of one object, changed.

    Attributes:
        rule: what must find it: a name of `RULES`, or what a schema says.
        place: kustomization below `overlays/`.
        target: the object, `Kind/name`.
        path: keys and indexes, separated by spaces; the last one may be new.
        value: its new value, or GONE.
    """

    rule: str
    place: str
    target: str
    path: str
    value: Any

    def __str__(self) -> str:
        return f"{self.rule}: {self.target} {self.path}"

    @property
    def change(self) -> str:
        """`spec.backoffLimit = "3"`, or `spec.selector is gone`."""
        name = self.path.replace(" ", ".")
        return f"{name} is gone" if self.value is GONE else f"{name} = {json.dumps(self.value)}"

    def apply(self, rendering: Rendering) -> tuple[Object, World]:
        """The changed object, and a world with it."""
        objects = copy.deepcopy(rendering.world.objects)
        one = next(each for each in objects if name_of(each) == self.target)
        keys: list[Any] = [int(key) if key.isdigit() else key for key in self.path.split(" ")]
        *keys, last = keys
        inner: Any = one
        for key in keys:
            inner = inner[key]
        if self.value is GONE:
            del inner[last]
        else:
            assert not isinstance(inner, list) or last < len(inner)
            inner[last] = self.value
        return one, replace(rendering.world, objects=objects)


JOB, CLUSTER, MLFLOW = "RayJob/ssat-pipeline", "RayCluster/ssat", "Deployment/ssat-mlflow"
RAY_POLICY = "NetworkPolicy/ssat-ray"
OF_JOB, OF_CLUSTER, SHARED, QUEUED = (
    "gpu/jobs/pipeline",
    "gpu/cluster",
    "gpu/platform",
    "queue/jobs/pipeline",
)
SPEC = "spec rayClusterSpec"
HEAD = f"{SPEC} headGroupSpec"
WORKER = f"{SPEC} workerGroupSpecs 0"
ON_GPU = f"{SPEC} workerGroupSpecs 1"
HEAD_POD, WORKER_POD, GPU_POD = (f"{group} template spec" for group in (HEAD, WORKER, ON_GPU))
IN_MLFLOW = "spec template spec containers 0"
LONG = "a-name-that-is-much-too-long-for-the-operator-of-ray-clusters"

OF_SCHEMAS = [
    Mutation("unknown-field", OF_JOB, JOB, "spec submisionMode", "HTTPMode"),
    Mutation("unknown-field", OF_JOB, JOB, f"{HEAD_POD} tolerationz", []),
    Mutation("unknown-field", OF_CLUSTER, CLUSTER, "spec workerGroupSpecs 0 maxReplica", 3),
    Mutation(
        "unknown-field", OF_CLUSTER, "CronJob/ssat-recheck", "spec concurencyPolicy", "Forbid"
    ),
    Mutation("unknown-field", SHARED, MLFLOW, f"{IN_MLFLOW} volumeMount", []),
    Mutation("unknown-field", SHARED, RAY_POLICY, "spec ingres", []),
    Mutation("unknown-field", OF_JOB, JOB, "metadata lables", {"a": "b"}),
    Mutation("unknown-field", "queue/quota", "ClusterQueue/ssat", "spec cohortt", "a"),
    Mutation("unknown-field", "queue/platform", "PodMonitor/ssat-workers", "spec endpoints", []),
    Mutation("wrong-type", OF_JOB, JOB, "spec backoffLimit", "3"),
    Mutation("wrong-type", OF_JOB, JOB, f"{HEAD} rayStartParams num-cpus", 0),
    Mutation("wrong-type", OF_CLUSTER, CLUSTER, "spec enableInTreeAutoscaling", "yes"),
    Mutation("wrong-type", OF_JOB, JOB, f"{WORKER_POD} containers 0 env 0 value", 1),
    Mutation(
        "wrong-type", SHARED, "PersistentVolumeClaim/ssat-data", "spec accessModes", "ReadWriteMany"
    ),
    Mutation("wrong-type", SHARED, MLFLOW, "spec replicas", "one"),
    Mutation(
        "wrong-type", "queue/platform", "ServiceMonitor/ssat-head", "spec endpoints 0 interval", 15
    ),
    Mutation("missing-field", OF_JOB, JOB, f"{WORKER} maxReplicas", GONE),
    Mutation("missing-field", SHARED, MLFLOW, "spec selector", GONE),
    Mutation("enum", OF_JOB, JOB, f"{SPEC} authOptions mode", "tokens"),
    Mutation("enum", OF_JOB, JOB, f"{SPEC} autoscalerOptions version", "v3"),
]
OF_RULES = [
    Mutation("name-length", OF_JOB, JOB, "metadata name", LONG[:48]),
    Mutation("name-length", OF_CLUSTER, CLUSTER, "metadata name", LONG[:54]),
    Mutation("name-length", OF_CLUSTER, "CronJob/ssat-recheck", "metadata name", LONG[:53]),
    Mutation("dns-label", OF_JOB, JOB, "metadata name", "ssat.pipeline"),
    Mutation("dns-label", OF_CLUSTER, CLUSTER, "metadata name", "7-ssat"),
    Mutation("dns-label", OF_JOB, JOB, f"{WORKER} groupName", "CPU"),
    Mutation("replicas", OF_JOB, JOB, f"{WORKER} minReplicas", 9),
    Mutation("replicas", OF_JOB, JOB, f"{WORKER} maxReplicas", 1),
    Mutation("replicas", OF_CLUSTER, CLUSTER, "spec workerGroupSpecs 1 replicas", 5),
    Mutation("shutdown", OF_JOB, JOB, "spec shutdownAfterJobFinishes", False),
    Mutation("shutdown", OF_JOB, JOB, "spec shutdownAfterJobFinishes", GONE),
    Mutation("shutdown", OF_JOB, JOB, "spec ttlSecondsAfterFinished", GONE),
    Mutation("submission-mode", OF_JOB, JOB, "spec submissionMode", "K8SJobMode"),
    Mutation("submission-mode", OF_JOB, JOB, "spec submissionMode", "httpMode"),
    Mutation("submission-mode", OF_JOB, JOB, "spec submissionMode", "SidecarMode"),
    Mutation("job-limits", OF_JOB, JOB, "spec activeDeadlineSeconds", GONE),
    Mutation("job-limits", OF_JOB, JOB, "spec activeDeadlineSeconds", 0),
    Mutation("job-limits", OF_JOB, JOB, "spec backoffLimit", -1),
    Mutation("autoscaler", OF_JOB, JOB, f"{HEAD_POD} restartPolicy", "Always"),
    Mutation("autoscaler", OF_JOB, JOB, f"{WORKER_POD} restartPolicy", "OnFailure"),
    Mutation("autoscaler", OF_JOB, JOB, f"{SPEC} autoscalerOptions version", "v1"),
    Mutation("autoscaler", OF_JOB, JOB, f"{SPEC} enableInTreeAutoscaling", False),
    Mutation("resources-once", OF_JOB, JOB, f"{WORKER} rayStartParams num-cpus", "4"),
    Mutation("resources-once", OF_JOB, JOB, f"{ON_GPU} resources", {"GPU": "1"}),
    Mutation("resources-once", OF_JOB, JOB, f"{HEAD} resources", {"CPU": "0"}),
    Mutation("idle-head", OF_JOB, JOB, f"{HEAD} rayStartParams num-cpus", "2"),
    Mutation("idle-head", OF_CLUSTER, CLUSTER, "spec headGroupSpec rayStartParams num-cpus", GONE),
    Mutation("token", OF_JOB, JOB, f"{SPEC} authOptions", GONE),
    Mutation("token", OF_JOB, JOB, f"{SPEC} authOptions mode", "disabled"),
    Mutation("token", OF_JOB, JOB, f"{SPEC} rayVersion", "2.51.0"),
    Mutation("ray-version", OF_JOB, JOB, f"{SPEC} rayVersion", "2.59.0"),
    Mutation("ray-version", OF_JOB, JOB, f"{GPU_POD} containers 0 image", "ssat-ray:0.1.0-ray2.59.0-gpu"),
    Mutation("ray-version", OF_JOB, JOB, f"{HEAD_POD} containers 0 image", "ssat-ray:latest"),
    Mutation(
        "ray-version", OF_JOB, JOB,
        "spec submitterPodTemplate spec containers 0 image", "ssat-ray:0.1.0-ray2.9.0-cpu",
    ),
    Mutation("image-target", OF_JOB, JOB, f"{GPU_POD} containers 0 image", "ssat-ray:0.1.0-ray2.60.0-cpu"),
    Mutation("image-target", SHARED, MLFLOW, f"{IN_MLFLOW} image", "ssat-ray:0.1.0-ray2.60.0-cpu"),
    Mutation("image-target", "cpu/jobs/pipeline", JOB, f"{HEAD_POD} containers 0 image", "ssat-ray:0.1.0-ray2.60.0-gpu"),
    Mutation("entrypoint", OF_JOB, JOB, "spec entrypoint", "python /opt/ssat/jobs/sweeep.py /etc/ssat/run.yaml --name digits"),
    Mutation("entrypoint", OF_JOB, JOB, "spec entrypoint", "python /opt/ssat/jobs/pipeline.py /etc/ssat/run.yaml"),
    Mutation("entrypoint", OF_JOB, JOB, "spec entrypoint", "python /opt/ssat/jobs/pipeline.py /etc/other/run.yaml --name digits"),
    Mutation("capacity", OF_JOB, JOB, f"{WORKER} minReplicas", 1),
    Mutation("capacity", OF_JOB, JOB, f"{ON_GPU} maxReplicas", 1),
    Mutation("capacity", OF_JOB, JOB, f"{WORKER_POD} containers 0 resources limits cpu", "500m"),
    Mutation("shared-folders", OF_JOB, JOB, f"{WORKER_POD} containers 0 volumeMounts 0 mountPath", "/mnt/other"),
    Mutation("shared-folders", OF_JOB, JOB, f"{HEAD_POD} volumes 0", {"name": "data", "emptyDir": {}}),
    Mutation("limits", OF_JOB, JOB, f"{WORKER_POD} containers 0 resources requests memory", "5Gi"),
    Mutation("limits", SHARED, MLFLOW, f"{IN_MLFLOW} resources requests cpu", "1500m"),
    Mutation("limits", OF_CLUSTER, CLUSTER, "spec headGroupSpec template spec containers 0 resources limits", {}),
    Mutation("shared-memory", OF_JOB, JOB, f"{WORKER_POD} volumes 1 emptyDir medium", GONE),
    Mutation("shared-memory", OF_JOB, JOB, f"{WORKER_POD} volumes 1 emptyDir sizeLimit", GONE),
    Mutation("shared-memory", OF_JOB, JOB, f"{WORKER_POD} volumes 1 emptyDir sizeLimit", "3Gi"),
    Mutation("shared-memory", OF_JOB, JOB, f"{ON_GPU} rayStartParams object-store-memory", "8589934592"),
    Mutation("shared-memory", OF_JOB, JOB, f"{HEAD} rayStartParams object-store-memory", GONE),
    Mutation("volumes", OF_JOB, JOB, f"{WORKER_POD} volumes 0", GONE),
    Mutation("volumes", OF_JOB, JOB, f"{HEAD_POD} containers 0 volumeMounts 1 name", "runs"),
    Mutation("volumes", SHARED, MLFLOW, f"{IN_MLFLOW} volumeMounts 1", GONE),
    Mutation("volumes", OF_JOB, JOB, f"{HEAD_POD} containers 0 volumeMounts 0 mountPath", "/etc/ssat"),
    Mutation("volumes", OF_JOB, JOB, f"{SPEC} autoscalerOptions volumeMounts 0 name", "scratch"),
    Mutation("locked-down", OF_JOB, JOB, f"{SPEC} autoscalerOptions volumeMounts", GONE),
    Mutation("locked-down", OF_JOB, JOB, f"{SPEC} autoscalerOptions securityContext", GONE),
    Mutation("locked-down", OF_JOB, JOB, f"{HEAD_POD} containers 0 securityContext readOnlyRootFilesystem", False),
    Mutation("locked-down", OF_JOB, JOB, f"{WORKER_POD} containers 0 volumeMounts 3", GONE),
    Mutation("locked-down", SHARED, MLFLOW, "spec template spec securityContext runAsNonRoot", GONE),
    Mutation("locked-down", OF_CLUSTER, "CronJob/ssat-recheck", "spec jobTemplate spec template spec containers 0 securityContext capabilities", GONE),
    Mutation("safe-driver", OF_JOB, JOB, f"{HEAD_POD} affinity", GONE),
    Mutation("safe-driver", OF_JOB, JOB, f"{HEAD_POD} tolerations", [{"key": "spot", "operator": "Exists"}]),
    Mutation("safe-driver", OF_JOB, JOB, f"{WORKER_POD} tolerations", GONE),
    Mutation("gpu-node", OF_JOB, JOB, f"{GPU_POD} tolerations 0", GONE),
    Mutation("gpu-node", OF_JOB, JOB, f"{GPU_POD} nodeSelector", GONE),
    Mutation("gpu-node", OF_JOB, JOB, f"{GPU_POD} containers 0 env 1 name", "NCCL_SOCKET_IFNAMES"),
    Mutation("selector", SHARED, MLFLOW, "spec template metadata labels app.kubernetes.io/component", "ui"),
    Mutation("selector", SHARED, "Service/ssat-mlflow", "spec selector app.kubernetes.io/component", "mlflw"),
    Mutation("selector", SHARED, RAY_POLICY, "spec podSelector matchLabels app.kubernetes.io/part-of", "ssat"),
    Mutation("selector", SHARED, "NetworkPolicy/ssat-mlflow", "spec ingress 0 from 0 podSelector matchLabels app.kubernetes.io/component", "head"),
    Mutation("selector", "queue/platform", "PodMonitor/ssat-workers", "spec selector matchLabels ray.io/node-type", "workers"),
    Mutation("selector", "queue/platform", "ServiceMonitor/ssat-head", "spec selector matchLabels ray.io/node-type", "worker"),
    Mutation("reference", OF_JOB, JOB, f"{HEAD_POD} containers 0 env 1 valueFrom secretKeyRef name", "ssat-login"),
    Mutation("reference", OF_JOB, JOB, f"{HEAD_POD} containers 0 env 2 valueFrom secretKeyRef key", "pasword"),
    Mutation("reference", OF_JOB, JOB, f"{WORKER_POD} imagePullSecrets 0 name", "registry"),
    Mutation("reference", OF_CLUSTER, "CronJob/ssat-recheck", "spec jobTemplate spec template spec containers 0 env 1 valueFrom secretKeyRef name", "ssat-token"),
    Mutation("reference", OF_JOB, JOB, f"{HEAD_POD} volumes 1 configMap name", "ssat-config"),
    Mutation("reference", OF_JOB, JOB, f"{HEAD_POD} volumes 0 persistentVolumeClaim claimName", "data"),
    Mutation("reference", OF_JOB, JOB, f"{HEAD_POD} serviceAccountName", "ray"),
    Mutation("ports", SHARED, "Service/ssat-mlflow", "spec ports 0 targetPort", "web"),
    Mutation("ports", SHARED, RAY_POLICY, "spec ingress 1 ports 0 port", 8625),
    Mutation("ports", "queue/platform", "PodMonitor/ssat-workers", "spec podMetricsEndpoints 0 port", "metric"),
    Mutation("exposed", SHARED, RAY_POLICY, "spec ingress 1 ports 0 port", 6379),
    Mutation("exposed", SHARED, RAY_POLICY, "spec ingress 2 ports", GONE),
    Mutation("exposed", SHARED, "NetworkPolicy/ssat-mlflow", "spec ingress 0 from", []),
    Mutation("exposed", OF_JOB, JOB, f"{WORKER} template metadata labels app.kubernetes.io/component", "worker"),
    Mutation("reachable", SHARED, RAY_POLICY, "spec ingress 1 from 0 podSelector matchLabels app.kubernetes.io/component", "mlflow"),
    Mutation("reachable", OF_JOB, RAY_POLICY, "spec ingress 1 from 0 podSelector matchLabels app.kubernetes.io/component", "files"),
    Mutation("reachable", OF_JOB, RAY_POLICY, "spec ingress 1 from 1 podSelector matchLabels app.kubernetes.io/name", "kuberay"),
    Mutation("reachable", OF_JOB, RAY_POLICY, "spec ingress 1 from 1 namespaceSelector matchLabels kubernetes.io/metadata.name", "default"),
    Mutation("reachable", OF_JOB, RAY_POLICY, "spec ingress 0 ports", [{"protocol": "TCP", "port": 6379}]),
    Mutation("reachable", OF_JOB, RAY_POLICY, "spec ingress 0", GONE),
    Mutation("reachable", OF_JOB, "NetworkPolicy/ssat-mlflow", "spec ingress", GONE),
    Mutation("reachable", OF_JOB, JOB, "spec submitterPodTemplate metadata labels app.kubernetes.io/component", "submit"),
    Mutation("reachable", OF_JOB, "NetworkPolicy/ssat-submitter", "spec policyTypes", ["Ingress", "Egress"]),
    Mutation("reachable", "queue/platform", RAY_POLICY, "spec ingress 2 from 0 namespaceSelector matchLabels kubernetes.io/metadata.name", "metrics"),
    Mutation("mlflow-host", SHARED, MLFLOW, f"{IN_MLFLOW} args 6", "--allowed-hosts=localhost:5000"),
    Mutation("mlflow-host", SHARED, MLFLOW, f"{IN_MLFLOW} args 0", GONE),
    Mutation("mlflow-host", SHARED, "Service/ssat-mlflow", "spec ports 0 port", 80),
    Mutation("queue", QUEUED, JOB, "metadata labels kueue.x-k8s.io/queue-name", "other"),
    Mutation("queue", QUEUED, JOB, f"{SPEC} enableInTreeAutoscaling", True),
    Mutation("queue", QUEUED, JOB, f"{ON_GPU} replicas", 3),
    Mutation("queue", QUEUED, "ClusterQueue/ssat", "spec resourceGroups 0 flavors 0 resources 2 name", "amd.com/gpu"),
    Mutation("queue", QUEUED, "LocalQueue/ssat", "spec clusterQueue", "shared"),
    Mutation("queue", QUEUED, "ResourceFlavor/ssat", "metadata name", "default"),
]  # fmt: skip


def found_by_schemas(
    mutation: Mutation, rendering: Rendering, folder: Path
) -> dict[str, list[str]]:
    """What the schemas of each release find, by its name: `{"kuberay v1.7.0": ["unknown-field"]}`."""
    one, _ = mutation.apply(rendering)
    return {
        target: [line.partition(":")[0] for line in errors(one, target, folder)]
        for target in targets(one, folder)
    }


def found_by_rules(mutation: Mutation, rendering: Rendering) -> list[str]:
    """The rules that find something wrong in a world with the changed object, each once."""
    _, world = mutation.apply(rendering)
    findings = (finding for one in world.objects for finding in check(one, world))
    return sorted({finding.rule for finding in findings})
