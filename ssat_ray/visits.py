"""What `ssat doctor` finds on every node of a cluster, and on the driver's."""

from __future__ import annotations

import contextlib
import os
import platform
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ssat_ray.config import Config
from ssat_ray.data.folder import Folder
from ssat_ray.data.pool import MANIFEST
from ssat_ray.doctor import Access, Cluster, Node
from ssat_ray.errors import UserError
from ssat_ray.places import Place, place, write_atomic
from ssat_ray.provenance import library_versions
from ssat_ray.start import check_inputs
from ssat_ray.store import Store
from ssat_ray.tracking import check as check_tracking

PROBE_BYTES = 32 * 2**20
PATIENCE = 120.0
"""Seconds until a node that does not answer is a finding."""


@ray.remote(num_cpus=0)
class Visitor:
    """Looks around on its node."""

    def clock(self) -> float:
        return time.time()

    def look(self, probes: dict[str, Place], pool: str | None) -> dict[str, Any]:
        """The fields of `Node` that only the node itself can tell.

        Args:
            probes: setting -> the driver's file in that folder.
        """
        import torch

        shm = Path("/dev/shm")
        return {
            "shm_bytes": int(psutil.disk_usage(str(shm)).total) if shm.is_dir() else 0,
            "versions": own_versions(),
            "cuda": torch.cuda.device_count(),
            "faiss_gpus": _faiss_gpus(),
            "folders": {setting: _access(probe) for setting, probe in probes.items()},
            "sees_pool": pool is None or _readable(pool),
        }


def _visitor(node: str) -> Any:
    """A visitor on the node of that id."""
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    return Visitor.options(scheduling_strategy=there).remote()  # type: ignore[attr-defined]


def own_versions() -> dict[str, str]:
    """Of Python and the libraries of this process."""
    return {"python": platform.python_version(), **library_versions()}


def _access(probe: Place) -> Access:
    error, speed = written(probe.parent)
    try:
        return Access(probe.exists(), error, speed)
    except OSError:  # of a bucket that refuses; `error` says why
        return Access(False, error, speed)


def written(folder: Place) -> tuple[str, float]:
    """Why a file cannot be written into the folder (empty if it can), and MiB/s of one that can."""
    path, data = folder / f".doctor-{uuid.uuid4().hex}", os.urandom(2**20)
    start = time.perf_counter()
    try:
        write_atomic(path, data * (PROBE_BYTES // len(data)))
        seconds = time.perf_counter() - start
    except OSError as error:
        return f"cannot be written ({error.strerror or error})", 0.0
    except UserError as error:  # the disk is full, or pyarrow knows no such location
        return str(error), 0.0
    finally:
        with contextlib.suppress(OSError, UserError):
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
    """Visit every node of the cluster that this process has joined, all at the same time.

    Raises:
        UserError: the driver itself cannot write to the store.
    """
    store = Store(config.runtime.store)
    store.check_writable()
    alive = {n["NodeID"]: n for n in ray.nodes() if n["Alive"]}
    visitors = {node: _visitor(node) for node in alive}
    pool = None if config.pool.path is None else str(Folder(config.pool.path))
    probes, driver_errors = _probes(config)
    try:
        asked = {node: visitor.look.remote(probes, pool) for node, visitor in visitors.items()}
        ready, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=PATIENCE)
    finally:
        for probe in probes.values():
            probe.unlink(missing_ok=True)
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
        tracking_error=_error_of(check_tracking, config.runtime.tracking_uri, store),
        driver_errors=driver_errors,
    )


def _probes(config: Config) -> tuple[dict[str, Place], dict[str, str]]:
    """Setting -> a file of the driver's in the folder that all nodes must reach; what the driver cannot read or write."""
    runtime = config.runtime
    probes, errors = {}, {}
    for setting, location in (
        ("runtime.store", runtime.store),
        ("runtime.checkpoints", runtime.checkpoints),
    ):
        if location is None:
            continue
        probe = place(location) / f".doctor-{uuid.uuid4().hex}"
        try:
            write_atomic(probe, "")
        except (OSError, UserError) as failure:
            errors[f"{setting}={location}"] = f"cannot be written ({failure})"
        else:
            probes[setting] = probe
    if error := written(place(runtime.runs))[0]:
        errors[f"runtime.runs={runtime.runs}"] = error
    if error := _error_of(check_inputs, config):
        errors["the input"] = error
    return probes, errors


def _error_of(check: Callable[..., object], *arguments: Any) -> str:
    """Why a check fails; empty if it does not."""
    try:
        check(*arguments)
    except UserError as error:
        return str(error)
    return ""


def _skew(visitor: Any) -> float:
    """Seconds that the visitor's clock is ahead at least, whatever the messages took of the time between."""
    before = time.time()
    there = float(ray.get(visitor.clock.remote(), timeout=PATIENCE))
    after = time.time()
    return max(0.0, there - after) or min(0.0, there - before)
