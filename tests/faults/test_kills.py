"""SIGKILL of Ray nodes that share one address, where hosts of their own cannot be had (or `SSAT_FAULTS=kills`)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from ssat_ray.store import RECORD
from tests.faults.hosts import namespaces_missing
from tests.faults.work import WORK, Undisturbed, Watch, begin, end_of, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow]

MEMORY = {"object_store_memory": 300 * 2**20}
NODE: dict[str, Any] = {"num_cpus": 1, **MEMORY}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without CPUs and two nodes of one CPU each."""
    if namespaces_missing() is None:
        pytest.skip("hosts of their own are to be had: test_faults.py kills these")
    found = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **MEMORY}
    )
    for _ in range(2):
        found.add_node(**NODE)
    yield found
    found.shutdown()


@pytest.mark.parametrize("stage", ["generate", "refine", "score", "train", "evaluate"])
def test_a_killed_node_changes_no_byte(
    stage: str, cluster: Cluster, undisturbed: Callable[[str], Undisturbed], tmp_path: Path
) -> None:
    work, output = WORK[stage], tmp_path / "output.txt"
    oracle = undisturbed(work.preset)
    expected = oracle.cwd / "store" / oracle.folders[work.job]
    folder = begin(work, oracle, tmp_path)
    command = [sys.executable, "-m", "ssat_ray", work.verb, "preset.yaml"]
    with output.open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=os.environ | {"RAY_ADDRESS": cluster.address},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until(0.3, Watch(work, folder, expected), process, output)
        cluster.remove_node(sorted(cluster.worker_nodes, key=id)[0], allow_graceful=False)
        assert not (folder / RECORD).exists(), "it had ended when the node was killed"
        cluster.add_node(**NODE)
        assert process.wait(timeout=600) == 0, end_of(output)
    finally:
        process.kill()
    assert work.result(folder) == work.result(expected)
