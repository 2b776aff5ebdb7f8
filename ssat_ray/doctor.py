"""`ssat doctor`: what a configuration needs of a cluster, against what was found on its nodes (`visits.py`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from ssat_ray.config import Config
from ssat_ray.needs import needs

Level = Literal["ok", "warning", "error"]
SLOW_STORAGE = 20.0
"""MiB/s below which a shared folder is a warning: a shard of 64 MiB takes 3 s then."""
SKEW_WARNING, SKEW_ERROR = 2.0, 15.0
"""Seconds; a lease expires after 30."""


@dataclass(frozen=True)
class Finding:
    """One line of the answer.

    Attributes:
        what: was looked at.
        found: what there is.
        mend: what to do about it; empty where all is well.
    """

    level: Level
    what: str
    found: str
    mend: str = ""


@dataclass(frozen=True)
class Access:
    """How a node reaches a folder that all nodes share.

    Attributes:
        seen: whether the file is there that the driver has put into it.
        error: why it cannot be written; empty if it can.
        speed: MiB/s of a synchronised write, while all nodes write.
    """

    seen: bool
    error: str
    speed: float


@dataclass(frozen=True)
class Node:
    """What a node says of itself.

    Attributes:
        name: its address.
        resources: that Ray gives out: `CPU`, `GPU`, `object_store_memory` (bytes).
        shm_bytes: size of /dev/shm.
        versions: of Python and the libraries.
        cuda, faiss_gpus: GPUs that torch and FAISS see; -1: FAISS cannot be imported.
        folders: setting, such as `runtime.store` -> how it reaches that folder.
        sees_pool: whether `pool.path`, if there is one, can be read.
        skew: seconds that its clock is ahead of the driver's, at least.
    """

    name: str
    resources: dict[str, float]
    shm_bytes: int
    versions: dict[str, str]
    cuda: int
    faiss_gpus: int
    folders: dict[str, Access]
    sees_pool: bool
    skew: float


@dataclass(frozen=True)
class Cluster:
    """What the driver sees.

    Attributes:
        nodes: that answered.
        silent: address -> what is wrong with those that did not.
        versions: the driver's own.
        token: whether it takes a token to get in.
        joined: a cluster that was there before, not a Ray of this command's own.
        tracking_error: why MLflow cannot be reached; empty if it can.
        driver_errors: what the driver reads or writes -> why it cannot.
    """

    nodes: tuple[Node, ...]
    silent: dict[str, str]
    versions: dict[str, str]
    token: bool
    joined: bool
    tracking_error: str
    driver_errors: dict[str, str] = field(default_factory=dict)


def judge(config: Config, cluster: Cluster) -> list[Finding]:
    """Every finding, the good ones too, in the order in which one would mend them."""
    return [
        *_nodes(cluster),
        *_resources(config, cluster),
        *_devices(cluster),
        *_versions(cluster),
        *_driver(cluster),
        *_storage(config, cluster),
        *_tracking(config, cluster),
        *_memory(cluster),
        *_clocks(cluster),
        *_token(cluster),
    ]


def _nodes(cluster: Cluster) -> Iterator[Finding]:
    if cluster.joined:
        yield Finding("ok", "cluster", _count(cluster))
    else:
        found = "a Ray of this command's own, on this machine: neither runtime.address nor RAY_ADDRESS names one"
        yield Finding("ok", "cluster", found)
    for name, reason in cluster.silent.items():
        mend = "look at its raylet's log, or take the node out of the cluster"
        yield Finding("error", f"node {name}", reason, mend)


def _count(cluster: Cluster) -> str:
    return "1 node" if len(cluster.nodes) == 1 else f"{len(cluster.nodes)} nodes"


def _resources(config: Config, cluster: Cluster) -> Iterator[Finding]:
    """As a run will find it (`runtime.ray_session`)."""
    nodes = [node.resources for node in cluster.nodes]
    for need in needs(config.runtime, nodes, autoscaled=cluster.joined):
        found = f"{need.found:g} on {_count(cluster)}, {need.needed:g} needed"
        if need.met:
            yield Finding("ok", need.what, found)
        elif need.to_come:
            mend = f"none, if the autoscaler brings them: a run waits ({need.promised:g} promised)"
            yield Finding("warning", need.what, found, mend)
        else:
            yield Finding("error", need.what, found, need.mend)


def _devices(cluster: Cluster) -> Iterator[Finding]:
    for node in cluster.nodes:
        given = int(node.resources.get("GPU", 0))
        if given > node.cuda:
            found = f"Ray gives out {given} GPUs, torch sees {node.cuda}"
            yield Finding(
                "error", f"CUDA on {node.name}", found, "mend the driver or the CUDA build of torch"
            )
        if node.faiss_gpus < 0:
            mend = "install faiss-gpu (or faiss-cpu) as requirements.lock says"
            yield Finding("error", f"FAISS on {node.name}", "cannot be imported", mend)


def _versions(cluster: Cluster) -> Iterator[Finding]:
    wrong = False
    for node in cluster.nodes:
        apart = [
            f"{name} {node.versions.get(name, 'missing')} (driver: {found})"
            for name, found in cluster.versions.items()
            if node.versions.get(name) != found
        ]
        if apart:
            wrong = True
            mend = "use one image, or install requirements.lock on every node"
            yield Finding("error", f"versions on {node.name}", ", ".join(apart), mend)
    if not wrong:
        ray_torch = ", ".join(f"{k} {cluster.versions.get(k)}" for k in ("python", "ray", "torch"))
        yield Finding("ok", "versions", f"the same on {_count(cluster)}: {ray_torch}")


def _driver(cluster: Cluster) -> Iterator[Finding]:
    for what, error in cluster.driver_errors.items():
        mend = "mend it on the driver's node, the head for a job"
        yield Finding("error", f"{what} on the driver", error, mend)


def _storage(config: Config, cluster: Cluster) -> Iterator[Finding]:
    for node in cluster.nodes:
        for setting, access in node.folders.items():
            location = getattr(config.runtime, setting.partition(".")[2])
            yield _folder(f"{setting}={location} on {node.name}", setting, access)
        if not node.sees_pool:
            mend = "give pool.path as a URI or a folder that all nodes have, and credentials to all"
            yield Finding(
                "error", f"the pool on {node.name}", f"{config.pool.path} cannot be read", mend
            )


def _folder(what: str, setting: str, access: Access) -> Finding:
    if access.error:
        mend = "mount the shared file system there, writable for Ray's user"
        return Finding("error", what, access.error, mend)
    if not access.seen:
        found = "another folder than the driver's: its file is not there"
        mend = f"{setting} must be one file system, mounted at the same place, or a bucket"
        return Finding("error", what, found, mend)
    found = f"writable, {access.speed:,.0f} MiB/s while all nodes write"
    if access.speed < SLOW_STORAGE:
        return Finding("warning", what, found, f"use storage of at least {SLOW_STORAGE:g} MiB/s")
    return Finding("ok", what, found)


def _tracking(config: Config, cluster: Cluster) -> Iterator[Finding]:
    uri = config.runtime.tracking_uri
    if cluster.tracking_error:
        mend = "set runtime.tracking_uri to a server that answers (its --allowed-hosts must have the name)"
        yield Finding("error", "MLflow", cluster.tracking_error, mend)
    else:
        yield Finding("ok", "MLflow", f"answers at {uri or 'mlflow.db in the store'}")


def _memory(cluster: Cluster) -> Iterator[Finding]:
    for node in cluster.nodes:
        store = node.resources.get("object_store_memory", 0.0)
        found = f"{node.shm_bytes / 2**30:.1f} GiB, the object store {store / 2**30:.1f} GiB"
        if store > node.shm_bytes:
            mend = (
                "mount a memory-backed /dev/shm of at least that size, or set --object-store-memory"
            )
            yield Finding("warning", f"/dev/shm on {node.name}", found, mend)
        else:
            yield Finding("ok", f"/dev/shm on {node.name}", found)


def _clocks(cluster: Cluster) -> Iterator[Finding]:
    worst = max(cluster.nodes, key=lambda node: abs(node.skew), default=None)
    if worst is None:
        return
    skew = abs(worst.skew)
    level: Level = "error" if skew > SKEW_ERROR else "warning" if skew > SKEW_WARNING else "ok"
    mend = "" if level == "ok" else "run an NTP client there: leases are judged by the clock"
    yield Finding(level, "clocks", f"{worst.name} is {skew:.1f} s off the driver's", mend)


def _token(cluster: Cluster) -> Iterator[Finding]:
    if cluster.token:
        yield Finding("ok", "token", "needed to get in")
    elif cluster.joined:
        mend = "start every node with RAY_AUTH_MODE=token (docs/cluster.md)"
        yield Finding("warning", "token", "none: whoever reaches the ports runs code", mend)
    else:
        yield Finding("ok", "token", "none, and Ray listens to this machine only")
