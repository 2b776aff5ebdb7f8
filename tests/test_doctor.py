"""What the doctor says of clusters: each fault by itself, and real ones (`visits.py`)."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ssat_ray.doctor import Access, Cluster, Node, judge
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
    folders={"runtime.store": Access(seen=True, error="", speed=300.0)},
    sees_pool=True,
    skew=0.1,
)
CLUSTER = Cluster((FIT, dataclasses.replace(FIT, name="10.0.0.3")), {}, VERSIONS, True, True, "")


def said(cluster: Cluster, *settings: str) -> list[tuple[str, str, str]]:
    """Level, what and found with mend of whatever is not well."""
    found = judge(load_config("digits", list(settings)), cluster)
    return [(f.level, f.what, f"{f.found} -> {f.mend}") for f in found if f.level != "ok"]


def with_node(**changes: Any) -> Cluster:
    return dataclasses.replace(CLUSTER, nodes=(dataclasses.replace(FIT, **changes), FIT))


def with_folder(setting: str = "runtime.store", **changes: Any) -> Cluster:
    access = dataclasses.replace(FIT.folders["runtime.store"], **changes)
    return with_node(folders={**FIT.folders, setting: access})


WITH_GPUS = with_node(resources={"CPU": 1.0, "GPU": 2.0}, cuda=2)
"""Two GPUs, on a node with one CPU."""


def test_a_cluster_that_is_fit() -> None:
    assert said(CLUSTER) == []
    assert {f.mend for f in judge(load_config("digits"), CLUSTER)} == {""}


@pytest.mark.parametrize(
    ("cluster", "settings", "level", "what", "part"),
    [
        (CLUSTER, ["runtime.actors=5"], "error", "CPUs", "4 on 2 nodes, 5 needed -> lower"),
        (CLUSTER, ["runtime.gpus_per_worker=1"], "error", "GPUs", "0 on 2 nodes, 2 needed -> set"),
        (CLUSTER, ["runtime.gpus_per_actor=0.5"], "error", "GPUs", "0 on 2 nodes, 1 needed -> set"),
        (
            CLUSTER,
            ["runtime.gpus_per_worker=1", "runtime.max_gpus=4"],
            "warning",
            "GPUs",
            "0 on 2 nodes, 2 needed -> none, if the autoscaler brings them: a run waits (4 promised)",
        ),
        (
            CLUSTER,
            ["runtime.cpus_per_worker=4", "runtime.train_workers=1"],
            "error",
            "places of 4 CPUs on a node",
            "0 on 2 nodes, 1 needed -> lower these",
        ),
        (
            WITH_GPUS,
            ["runtime.gpus_per_worker=1"],
            "error",
            "places of 1 CPUs and 1 GPUs on a node",
            "1 on 2 nodes, 2 needed",
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
            with_folder(error="cannot be written (Read-only file system)"),
            [],
            "error",
            "runtime.store=store on 10.0.0.2",
            "Read-only",
        ),
        (with_folder(seen=False), [], "error", "runtime.store=store on 10.0.0.2", "another folder"),
        (with_folder(speed=3.0), [], "warning", "runtime.store=store on 10.0.0.2", "3 MiB/s"),
        (
            with_folder("runtime.checkpoints", seen=False),
            ["runtime.checkpoints=/states"],
            "error",
            "runtime.checkpoints=/states on 10.0.0.2",
            "runtime.checkpoints must be one file system",
        ),
        (
            dataclasses.replace(CLUSTER, driver_errors={"runtime.runs=/runs": "cannot be written"}),
            [],
            "error",
            "runtime.runs=/runs on the driver",
            "cannot be written -> mend it on the driver's node",
        ),
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


def test_an_own_ray_needs_no_token_and_is_said_to_be_one() -> None:
    own = dataclasses.replace(CLUSTER, token=False, joined=False)
    assert said(own) == []
    first, joined = (judge(load_config("digits"), one)[0] for one in (own, CLUSTER))
    assert "a Ray of this command's own, on this machine: neither runtime.address" in first.found
    assert (joined.what, joined.found) == ("cluster", "2 nodes")


def test_no_autoscaler_brings_gpus_to_this_machine() -> None:
    own = dataclasses.replace(CLUSTER, token=False, joined=False)
    ((level, what, _),) = said(own, "runtime.gpus_per_worker=1", "runtime.max_gpus=4")
    assert (level, what) == ("error", "GPUs")


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
    assert lines[0][1].startswith("cluster: a Ray of this command's own, on this machine")
    assert not [path for path in (tmp_path / "store").iterdir() if path.name.startswith(".doctor")]
    unfit = subprocess.run(
        [*command, "runtime.gpus_per_worker=1", "--set", "runtime.num_cpus=2"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert unfit.returncode == 1 and "error    GPUs: 0 on 1 node, 2 needed" in unfit.stdout


@pytest.mark.ray
@pytest.mark.slow
def test_this_machine_for_programs(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    settings = ["runtime.num_cpus=2", "runtime.log_format=json", "runtime.runs=file/runs"]
    settings += ["runtime.checkpoints=states", "data.name=npz", "data.path=lost.npz"]
    command = [sys.executable, "-m", "ssat_ray", "doctor", "digits"]
    command += [word for setting in settings for word in ("--set", setting)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stdout + done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line["event"] for line in found} == {"finding"}
    wrong = {line["what"]: line["found"] for line in found if line["level"] == "error"}
    assert set(wrong) == {"runtime.runs=file/runs on the driver", "the input on the driver"}
    assert wrong["the input on the driver"] == "data.path: lost.npz does not exist."
    (states,) = [line for line in found if line["what"].startswith("runtime.checkpoints=states on")]
    assert states["level"] in ("ok", "warning") and "writable" in states["found"]
    assert list((tmp_path / "states").iterdir()) == []
