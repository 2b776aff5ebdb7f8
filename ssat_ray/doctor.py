"""`ssat doctor`: what a configuration needs of a cluster, and what every node of it has."""

from __future__ import annotations

import contextlib
import os
import platform
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ssat_ray.config import Config
from ssat_ray.data.folder import Folder
from ssat_ray.data.pool import MANIFEST
from ssat_ray.errors import UserError
from ssat_ray.places import Place, place, write_atomic
from ssat_ray.provenance import library_versions
from ssat_ray.store import Store
from ssat_ray.tracking import check as check_tracking

Level = Literal["ok", "warning", "error"]
PROBE_BYTES = 32 * 2**20
SLOW_STORAGE = 20.0
"""MiB/s below which a shared folder is a warning: a shard of 64 MiB takes 3 s then."""
SKEW_WARNING, SKEW_ERROR = 2.0, 15.0
"""Seconds; a lease expires after 30."""
PATIENCE = 120.0
"""Seconds until a node that does not answer is a finding."""


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
class Node:
    """What a node says of itself.

    Attributes:
        name: its address.
        resources: that Ray gives out: `CPU`, `GPU`, `object_store_memory` (bytes).
        shm_bytes: size of /dev/shm.
        versions: of Python and the libraries.
        cuda, faiss_gpus: GPUs that torch and FAISS see; -1: FAISS cannot be imported.
        sees_store: whether the file is there that the driver has put into the store.
        sees_pool: whether `pool.path`, if there is one, can be read.
        store_error: why it cannot write to the store; empty if it can.
        store_speed: MiB/s of a synchronised write to the store.
        skew: seconds that its clock is ahead of the driver's, at least.
    """

    name: str
    resources: dict[str, float]
    shm_bytes: int
    versions: dict[str, str]
    cuda: int
    faiss_gpus: int
    sees_store: bool
    sees_pool: bool
    store_error: str
    store_speed: float
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
    """

    nodes: tuple[Node, ...]
    silent: dict[str, str]
    versions: dict[str, str]
    token: bool
    joined: bool
    tracking_error: str


def judge(config: Config, cluster: Cluster) -> list[Finding]:
    """Every finding, the good ones too, in the order in which one would mend them."""
    return [
        *_resources(config, cluster),
        *_versions(cluster),
        *_storage(config, cluster),
        *_tracking(config, cluster),
        *_memory(cluster),
        *_clocks(cluster),
        *_token(cluster),
    ]


def _resources(config: Config, cluster: Cluster) -> Iterator[Finding]:
    for name, reason in cluster.silent.items():
        mend = "look at its raylet's log, or take the node out of the cluster"
        yield Finding("error", f"node {name}", reason, mend)
    runtime = config.runtime
    needs = {
        "CPU": (
            max(runtime.least_workers * runtime.cpus_per_worker, runtime.actors),
            "lower runtime.train_workers, runtime.cpus_per_worker and runtime.actors, or add nodes",
        ),
        "GPU": (
            max(
                runtime.least_workers * runtime.gpus_per_worker,
                runtime.actors * runtime.gpus_per_actor,
            ),
            "set runtime.gpus_per_worker=0 and runtime.gpus_per_actor=0, or add GPU nodes",
        ),
    }
    for kind, (needed, mend) in needs.items():
        there = sum(node.resources.get(kind, 0.0) for node in cluster.nodes)
        found = f"{there:g} on {_nodes(cluster)}, {needed:g} needed"
        enough = there >= needed
        yield Finding("ok" if enough else "error", f"{kind}s", found, "" if enough else mend)
    each = runtime.cpus_per_worker
    fitting = sum(int(node.resources.get("CPU", 0.0) // each) for node in cluster.nodes)
    if fitting < runtime.least_workers:
        found = f"{fitting} nodes' worth of {each} CPUs together, {runtime.least_workers} workers"
        mend = "lower runtime.cpus_per_worker: a worker's CPUs are on one node"
        yield Finding("error", "CPUs of a worker", found, mend)
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


def _nodes(cluster: Cluster) -> str:
    return "1 node" if len(cluster.nodes) == 1 else f"{len(cluster.nodes)} nodes"


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
        yield Finding("ok", "versions", f"the same on {_nodes(cluster)}: {ray_torch}")


def _storage(config: Config, cluster: Cluster) -> Iterator[Finding]:
    store = f"the store {config.runtime.store}"
    for node in cluster.nodes:
        if node.store_error:
            mend = "mount the shared file system there, writable for Ray's user"
            yield Finding("error", f"{store} on {node.name}", node.store_error, mend)
        elif not node.sees_store:
            found = "another folder than the driver's: its file is not there"
            mend = "runtime.store must be one file system, mounted at the same place, or a bucket"
            yield Finding("error", f"{store} on {node.name}", found, mend)
        else:
            slow = node.store_speed < SLOW_STORAGE
            mend = f"use storage of at least {SLOW_STORAGE:g} MiB/s" if slow else ""
            found = f"writable, {node.store_speed:,.0f} MiB/s"
            yield Finding("warning" if slow else "ok", f"{store} on {node.name}", found, mend)
        if not node.sees_pool:
            mend = "give pool.path as a URI or a folder that all nodes have, and credentials to all"
            yield Finding(
                "error", f"the pool on {node.name}", f"{config.pool.path} cannot be read", mend
            )


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


@ray.remote(num_cpus=0)
class Visitor:
    """Looks around on its node."""

    def clock(self) -> float:
        return time.time()

    def look(self, store: str, probe: str, pool: str | None) -> dict[str, Any]:
        """The fields of `Node` that only the node itself can tell."""
        import torch

        error, speed = _written(place(store))
        return {
            "shm_bytes": int(psutil.disk_usage("/dev/shm").total)
            if Path("/dev/shm").is_dir()
            else 0,
            "versions": own_versions(),
            "cuda": torch.cuda.device_count(),
            "faiss_gpus": _faiss_gpus(),
            "sees_store": place(probe).exists(),
            "sees_pool": pool is None or _readable(pool),
            "store_error": error,
            "store_speed": speed,
        }


def _visitor(node: str) -> Any:
    """A visitor on the node of that id."""
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    return Visitor.options(scheduling_strategy=there).remote()  # type: ignore[attr-defined]


def own_versions() -> dict[str, str]:
    """Of Python and the libraries of this process."""
    return {"python": platform.python_version(), **library_versions()}


def _written(store: Place) -> tuple[str, float]:
    """Why a file cannot be written into the folder, and MiB/s of one that can."""
    path, data = store / f".doctor-{uuid.uuid4().hex}", os.urandom(2**20)
    start = time.perf_counter()
    try:
        write_atomic(path, data * (PROBE_BYTES // len(data)))
        seconds = time.perf_counter() - start
    except OSError as error:
        return f"cannot be written ({error.strerror or error})", 0.0
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
    return "", PROBE_BYTES / 2**20 / seconds


def _faiss_gpus() -> int:
    try:
        import faiss
    except ImportError:
        return -1
    return int(faiss.get_num_gpus())


def _readable(pool: str) -> bool:
    try:
        return Folder(pool).exists(MANIFEST)
    except (OSError, UserError):
        return False


def look(config: Config) -> Cluster:
    """Visit every node of the cluster that this process has joined."""
    store = Store(config.runtime.store)
    store.check_writable()
    alive = {n["NodeID"]: n for n in ray.nodes() if n["Alive"]}
    visitors = {node: _visitor(node) for node in alive}
    pool = None if config.pool.path is None else str(Folder(config.pool.path))
    probe = store.root / f".doctor-{uuid.uuid4().hex}"
    write_atomic(probe, "")
    try:
        asked = {
            node: visitor.look.remote(str(store.root), str(probe), pool)
            for node, visitor in visitors.items()
        }
        ready, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=PATIENCE)
    finally:
        probe.unlink()
    nodes, silent = [], {}
    for node, about in alive.items():
        name = str(about["NodeManagerAddress"])
        if asked[node] not in ready:
            silent[name] = f"no answer within {PATIENCE:.0f} s"
            continue
        try:
            found = ray.get(asked[node])
            nodes.append(Node(name, dict(about["Resources"]), skew=_skew(visitors[node]), **found))
        except ray.exceptions.RayError as error:  # a library is missing there, or the node has gone
            silent[name] = (str(error).strip().splitlines() or [type(error).__name__])[-1]
    for visitor in visitors.values():
        ray.kill(visitor)
    return Cluster(
        nodes=tuple(nodes),
        silent=silent,
        versions=own_versions(),
        token=os.environ.get("RAY_AUTH_MODE") == "token",
        joined=bool(config.runtime.address or os.environ.get("RAY_ADDRESS")),
        tracking_error=_tracking_error(config, store),
    )


def _skew(visitor: Any) -> float:
    """Seconds that the visitor's clock is ahead at least, whatever the messages took of the time between."""
    before = time.time()
    there = float(ray.get(visitor.clock.remote(), timeout=PATIENCE))
    after = time.time()
    return max(0.0, there - after) or min(0.0, there - before)


def _tracking_error(config: Config, store: Store) -> str:
    try:
        check_tracking(config.runtime.tracking_uri, store)
    except UserError as error:
        return str(error)
    return ""
