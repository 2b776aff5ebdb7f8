"""Clustering actors, really started: they work for several jobs in turn, and after kills, and sum the same."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from ssat_ray import runtime
from ssat_ray.config import RuntimeConfig
from ssat_ray.selection import lloyd
from ssat_ray.selection.kmeans import fit_kmeans
from ssat_ray.selection.points import Frame
from ssat_ray.stages.base import Task
from ssat_ray.stages.cluster_actors import KMEANS_BITS, ClusterActors, total
from ssat_ray.stages.held import Held, hold
from ssat_ray.store import Job

pytestmark = pytest.mark.ray

PARTS, ROWS, WIDTH, K = 5, 300, 6, 4


@pytest.fixture(scope="module")
def actors() -> Iterator[ClusterActors]:
    with runtime.ray_session(RuntimeConfig(num_cpus=2)), ClusterActors(2) as started:
        started.wait()
        yield started


class HeldJob:
    """A job whose embeddings are on disk, and all of them in memory."""

    def __init__(self, folder: Path, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.h = rng.normal(size=(PARTS, ROWS, WIDTH)).astype(np.float16).astype(np.float32)
        for part, h in enumerate(self.h):
            ids = np.arange(ROWS) + part * ROWS
            hold(folder, part, h.astype(np.float16), ids, rng.random(ROWS))
        config = {"cluster": {"k": K, "sample_rows": 100, "restarts": 5}}
        job = Job("cluster", 2, {"seed": seed, "method": "kmeans"}, config, {})
        self.task = Task(job, folder, {}, folder)
        self.frame = Frame.fit(self.h.reshape(-1, WIDTH), bits=KMEANS_BITS)
        self.centroids = (self.h[0, :K] - self.frame.mean).astype(np.float32)

    def expected(self) -> lloyd.LloydStatistics:
        points = self.frame.points(self.h.reshape(-1, WIDTH))
        return lloyd.lloyd_statistics(points, self.centroids, self.frame.grid)

    def found(self, actors: ClusterActors, most_bytes: int = 10**9) -> lloyd.LloydStatistics:
        holdings = actors.share(self.task, list(range(PARTS)), self.frame, most_bytes)
        assert [len(holding.parts) for holding in holdings] == [3, 2]
        return total(actors.ask(holdings, "lloyd", self.centroids))


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> list[HeldJob]:
    return [HeldJob(tmp_path_factory.mktemp(f"job-{seed}"), seed) for seed in range(2)]


def assert_same(found: lloyd.LloydStatistics, expected: lloyd.LloydStatistics) -> None:
    assert np.array_equal(found.counts, expected.counts)
    assert np.array_equal(found.sums.value(), expected.sums.value())
    assert found.inertia.value() == expected.inertia.value()


POINTS = 4 * WIDTH * PARTS * ROWS


@pytest.mark.parametrize(
    ("most_bytes", "where"),
    [(POINTS, "points"), (POINTS - 1, "embeddings"), (POINTS // 2 - 1, "files")],
)
def test_jobs_in_turn(
    actors: ClusterActors, jobs: list[HeldJob], most_bytes: int, where: str
) -> None:
    holding = actors.share(jobs[0].task, [0, 1, 2, 3, 4], jobs[0].frame, most_bytes)[0]
    assert holding.where == where
    for job in (*jobs, *jobs):
        assert_same(job.found(actors, most_bytes), job.expected())


def test_the_largest_coordinate(actors: ClusterActors, jobs: list[HeldJob]) -> None:
    job = jobs[0]
    found = actors.largest(job.task, list(range(PARTS)), job.frame)
    assert found == np.abs(job.h.astype(np.float64) - job.frame.mean).max()


def test_a_killed_actor_reads_its_embeddings_again(
    actors: ClusterActors, jobs: list[HeldJob]
) -> None:
    expected = jobs[0].expected()
    assert_same(jobs[0].found(actors), expected)
    named = [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"]]
    mine = {p.pid for p in psutil.Process().children(recursive=True)}
    victims = [p for p in named if p.pid in mine and "ClusterActor" in p.info["cmdline"][0]]
    assert len(victims) == 2
    os.kill(victims[0].pid, signal.SIGKILL)
    assert_same(jobs[0].found(actors), expected)
    assert actors.let_go() > 0
    assert_same(jobs[0].found(actors), expected)


def test_a_job_of_fewer_parts_than_actors(actors: ClusterActors, jobs: list[HeldJob]) -> None:
    job = jobs[1]
    holdings = actors.share(job.task, [3], job.frame, POINTS)
    assert len(holdings) == 1
    points = job.frame.points(job.h[3])
    expected = lloyd.lloyd_statistics(points, job.centroids, job.frame.grid)
    assert_same(total(actors.ask(holdings, "lloyd", job.centroids)), expected)


def test_restarts_are_dealt_out_and_the_best_of_all_is_kept(
    actors: ClusterActors, jobs: list[HeldJob]
) -> None:
    job = jobs[0]
    found = actors.start(job.task, list(range(PARTS)), K)
    sample = Held(job.task.folder, list(range(PARTS))).sample(100)
    expected = fit_kmeans(sample, K, restarts=5, seed=0)
    assert found.rank == expected.rank
    np.testing.assert_allclose(found.clusters + found.frame.mean, expected.centroids, atol=1e-6)
    assert found.seconds > 0 and found.peak_pss > 2**20
