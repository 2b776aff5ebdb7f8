"""Nodes that go while a group trains: fewer workers go on from the last state, to the same bits."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from ray.cluster_utils import Cluster

if TYPE_CHECKING:
    from tests.stages.conftest import StageRun

pytestmark = [pytest.mark.ray, pytest.mark.slow]

PRESET = """\
rows: [full]
model: {{widths: [16, 32], strides: [2, 2]}}
intermediate: {{num_steps: 20, batch_size: 64, bn_group: 32}}
pool: {{source: synth}}
synth: {{num_images: 2000}}
objective: {{num_steps: 3, step_size: 0.1}}
train: {{max_steps: {steps}, eval_every: {every}, patience: 99, batch_size: 64, bn_group: 32, window_mib: 0.04}}
evaluate: {{pgd_steps: 3, apgd_steps: 3}}
runtime: {{train_workers: [1, 2], actors: 1, checkpoint_minutes: {minutes}, max_failures: {failures}}}
"""
LAST_STEP = 1200
"""Long enough for a state by the clock, and a notice, well before the end."""


def preset(minutes: float, last_step: int = LAST_STEP, failures: int = 3) -> str:
    steps = last_step * 4 // 5
    return PRESET.format(minutes=minutes, steps=steps, every=steps // 4, failures=failures)


@pytest.fixture(scope="module")
def oracle(stage_run: type[StageRun], tmp_path_factory: pytest.TempPathFactory) -> StageRun:
    run = stage_run(tmp_path_factory.mktemp("undisturbed"))
    (run.cwd / "preset.yaml").write_text(preset(10))
    run.finish(run.start())
    assert run.record["world_size"] == 2 and run.record["steps"] == LAST_STEP
    return run


NODE = {"num_cpus": 1, "object_store_memory": 300 * 2**20}


@pytest.fixture
def head() -> Iterator[Cluster]:
    """A head of one CPU."""
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


@pytest.fixture
def cluster(head: Cluster) -> Cluster:
    """A head and a node of one CPU each."""
    head.add_node(**NODE)
    return head


def assert_same(run: StageRun, oracle: StageRun) -> None:
    """The weights to the bit; the mean losses that are logged are float32 sums, in another order with another
    number of workers."""
    assert run.files() == oracle.files()
    assert run.history() == [pytest.approx(row, rel=1e-6) for row in oracle.history()]


def test_without_a_node_the_others_go_on(
    oracle: StageRun, stage_run: type[StageRun], cluster: Cluster, tmp_path: Path
) -> None:
    run = stage_run(tmp_path)
    (tmp_path / "preset.yaml").write_text(preset(0.01))
    process = run.start(cluster.address)
    run.wait_for(process, lambda: run.saved_step >= 100)
    (node,) = cluster.worker_nodes
    cluster.remove_node(node, allow_graceful=False)
    at = run.saved_step
    run.finish(process)
    assert 100 <= at < LAST_STEP
    assert run.record["world_size"] == 1
    assert_same(run, oracle)


def test_a_node_that_comes_is_used(
    stage_run: type[StageRun], head: Cluster, tmp_path: Path
) -> None:
    last = 3000  # well over the 10 s after which Ray Train looks for room
    runs = {name: stage_run(tmp_path / name) for name in ("undisturbed", "growing")}
    for run in runs.values():
        run.cwd.mkdir(exist_ok=True)
        (run.cwd / "preset.yaml").write_text(preset(0.05, last))
    run = runs["growing"]
    process = run.start(head.address)
    run.wait_for(process, lambda: run.saved_step >= 50)
    head.add_node(**NODE)
    run.finish(process)
    assert run.record["world_size"] == 2 and 50 <= run.record["resumed_step"] < last
    runs["undisturbed"].finish(runs["undisturbed"].start(head.address))
    assert_same(run, runs["undisturbed"])


def test_notice_of_a_node_that_goes_saves_a_state_at_once(
    oracle: StageRun, stage_run: type[StageRun], cluster: Cluster, tmp_path: Path
) -> None:
    """And is no failure, of which none is allowed here."""
    run = stage_run(tmp_path)
    (tmp_path / "preset.yaml").write_text(preset(0.4, failures=0))
    process = run.start(cluster.address)
    run.wait_for(process, lambda: run.saved_step >= 1)  # by the clock
    (node,) = cluster.worker_nodes
    before, noticed = run.saved_step, time.monotonic()
    drain = ["drain-node", "--address", cluster.address, "--node-id", node.node_id]
    why = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
    ray = str(Path(sys.executable).with_name("ray"))
    subprocess.run([ray, *drain, *why, "--deadline-remaining-seconds", "30"], check=True)
    run.wait_for(process, lambda: run.saved_step > before)
    assert time.monotonic() - noticed < 15, "that was the clock's next state"
    cluster.remove_node(node, allow_graceful=False)
    run.finish(process)
    assert run.record["world_size"] == 1
    assert_same(run, oracle)
