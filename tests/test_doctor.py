"""What the doctor says of clusters: each fault by itself, and a real one."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ssat_ray.doctor import Cluster, Node, judge
from ssat_ray.loading import load_config

VERSIONS = {"python": "3.11.7", "ray": "2.60.0", "torch": "2.14.1"}
GIB = 2**30
FIT = Node(
    name="10.0.0.2",
    resources={"CPU": 2.0, "object_store_memory": 1.0 * GIB},
    shm_bytes=2 * GIB,
    versions=VERSIONS,
    cuda=0,
    faiss_gpus=0,
    sees_store=True,
    sees_pool=True,
    store_error="",
    store_speed=300.0,
    skew=0.1,
)
CLUSTER = Cluster((FIT, dataclasses.replace(FIT, name="10.0.0.3")), {}, VERSIONS, True, True, "")


def said(cluster: Cluster, *settings: str) -> list[tuple[str, str, str]]:
    """Level, what and found with mend of whatever is not well."""
    found = judge(load_config("digits", list(settings)), cluster)
    return [(f.level, f.what, f"{f.found} -> {f.mend}") for f in found if f.level != "ok"]


def with_node(**changes: Any) -> Cluster:
    return dataclasses.replace(CLUSTER, nodes=(dataclasses.replace(FIT, **changes), FIT))


def test_a_cluster_that_is_fit() -> None:
    assert said(CLUSTER) == []
    assert {f.mend for f in judge(load_config("digits"), CLUSTER)} == {""}


@pytest.mark.parametrize(
    ("cluster", "settings", "level", "what", "part"),
    [
        (CLUSTER, ["runtime.actors=5"], "error", "CPUs", "4 on 2 nodes, 5 needed -> lower"),
        (CLUSTER, ["runtime.gpus_per_worker=1"], "error", "GPUs", "0 on 2 nodes, 2 needed"),
        (CLUSTER, ["runtime.gpus_per_actor=0.5"], "error", "GPUs", "0 on 2 nodes, 1 needed"),
        (
            CLUSTER,
            ["runtime.cpus_per_worker=4", "runtime.train_workers=1"],
            "error",
            "CPUs of a worker",
            "a worker's CPUs are on one node",
        ),
        (
            with_node(resources={"CPU": 2.0, "GPU": 1.0}),
            [],
            "error",
            "CUDA on 10.0.0.2",
            "Ray gives out 1 GPUs, torch sees 0",
        ),
        (with_node(faiss_gpus=-1), [], "error", "FAISS on 10.0.0.2", "cannot be imported"),
        (
            with_node(versions={**VERSIONS, "torch": "2.13.0"}),
            [],
            "error",
            "versions on 10.0.0.2",
            "torch 2.13.0 (driver: 2.14.1) -> use one image",
        ),
        (
            with_node(store_error="cannot be written (Read-only file system)"),
            [],
            "error",
            "the store store on 10.0.0.2",
            "Read-only",
        ),
        (with_node(sees_store=False), [], "error", "the store store on 10.0.0.2", "another folder"),
        (with_node(store_speed=3.0), [], "warning", "the store store on 10.0.0.2", "3 MiB/s"),
        (with_node(sees_pool=False), [], "error", "the pool on 10.0.0.2", "credentials"),
        (
            dataclasses.replace(CLUSTER, tracking_error="403 Forbidden"),
            [],
            "error",
            "MLflow",
            "403 Forbidden -> set runtime.tracking_uri",
        ),
        (with_node(shm_bytes=2**26), [], "warning", "/dev/shm on 10.0.0.2", "0.1 GiB"),
        (with_node(skew=-4.0), [], "warning", "clocks", "10.0.0.2 is 4.0 s off"),
        (with_node(skew=40.0), [], "error", "clocks", "NTP"),
        (dataclasses.replace(CLUSTER, token=False), [], "warning", "token", "RAY_AUTH_MODE"),
        (
            dataclasses.replace(CLUSTER, silent={"10.0.0.9": "no module named torch"}),
            [],
            "error",
            "node 10.0.0.9",
            "no module named torch -> look at",
        ),
    ],
)
def test_each_fault_is_found_alone_with_its_mend(
    cluster: Cluster, settings: list[str], level: str, what: str, part: str
) -> None:
    ((found_level, found_what, text),) = said(cluster, *settings)
    assert (found_level, found_what) == (level, what) and part in text


def test_an_own_ray_needs_no_token() -> None:
    assert said(dataclasses.replace(CLUSTER, token=False, joined=False)) == []


@pytest.mark.ray
@pytest.mark.slow
def test_this_machine(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ssat_ray", "doctor", "digits", "--set"]
    fit = subprocess.run(
        [*command, "runtime.num_cpus=2"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert fit.returncode == 0, fit.stdout + fit.stderr
    lines = [line.split(maxsplit=1) for line in fit.stdout.splitlines()]
    assert {level for level, _ in lines} <= {"ok", "warning"}
    assert any(text.startswith("CPUs: 2 on 1 node, 2 needed") for _, text in lines)
    assert any("writable" in text for _, text in lines)
    assert not [path for path in (tmp_path / "store").iterdir() if path.name.startswith(".doctor")]
    unfit = subprocess.run(
        [*command, "runtime.gpus_per_worker=1", "--set", "runtime.num_cpus=2"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert unfit.returncode == 1 and "error    GPUs: 0 on 1 node, 2 needed" in unfit.stdout
