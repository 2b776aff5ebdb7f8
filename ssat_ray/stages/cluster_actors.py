"""Actors that fit clusters on a sample of embeddings and hold embeddings for the refinement (Ray actors)."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import ray

from ssat_ray.config import ClusterConfig
from ssat_ray.runtime import Meter, keep_memory, release_memory, use_threads
from ssat_ray.selection import em
from ssat_ray.selection.clusters import Clusters, score_columns
from ssat_ray.selection.drift import Reference
from ssat_ray.selection.gmm import GaussianMixture, fit_gmm
from ssat_ray.selection.kmeans import fit_kmeans
from ssat_ray.selection.points import Frame
from ssat_ray.stages.base import Task
from ssat_ray.stages.held import Held
from ssat_ray.stages.held_points import HeldPoints, Holding

KMEANS_BITS = 24


@dataclass(frozen=True)
class Start:
    """Clusters of the sample in the frame's coordinates, and what they took.

    Attributes:
        rank: lower is better, among starts of the same job.
        peak_pss: of the process, bytes.
    """

    frame: Frame
    clusters: Clusters
    rank: tuple[float, int]
    seconds: float
    peak_pss: int


@ray.remote(num_cpus=1, max_restarts=8, max_task_retries=8)
class ClusterActor:
    """Works for the stage's jobs one after another.

    Every call says what it is about: an actor that holds another job, or was just restarted, reads the
    embeddings again.
    """

    def __init__(self) -> None:
        use_threads(1)
        keep_memory()
        self._holding: tuple[Any, HeldPoints] | None = None

    def ready(self) -> None:
        """Returns once the process is up."""

    def start(self, task: Task, parts: list[int], k: int, restarts: list[int]) -> Start:
        """Clusters of a job's sample: the best of these restarts of k-means, or the mixture."""
        config = ClusterConfig(**task.job.config["cluster"])
        with Meter() as meter:
            sample = Held(task.folder, parts).sample(config.sample_rows)
            clusters: Clusters
            rank = (0.0, 0)
            if task.job.params["method"] == "kmeans":
                import faiss

                faiss.omp_set_num_threads(1)
                fit = fit_kmeans(
                    sample,
                    k,
                    restarts=config.restarts,
                    iterations=config.iterations,
                    seed=task.seed,
                    starts=restarts,
                )
                rank = fit.rank
                frame = Frame.fit(sample, bits=KMEANS_BITS)
                clusters = (fit.centroids - frame.mean).astype(np.float32)
            else:
                mixture = fit_gmm(
                    sample,
                    k,
                    covariance=config.covariance,
                    pca_dims=config.pca_dims,
                    seed=task.seed,
                )
                frame = em.mixture_frame(sample, mixture)
                clusters = em.into_frame(mixture, frame)
        return Start(frame, clusters, rank, meter.seconds, meter.peak_pss)

    def largest(self, task: Task, parts: list[int], frame: Frame) -> float:
        """The largest coordinate of these parts' embeddings in a frame."""
        return max(frame.largest(h) for h in Held(task.folder, parts).embeddings())

    def ask(self, holding: Holding, method: str, *args: Any) -> Any:
        """What a method of the points held returns."""
        key = (holding.task.folder, holding.parts)
        if self._holding is None or self._holding[0] != key:
            self.let_go()
            self._holding = key, HeldPoints(holding)
        return getattr(self._holding[1], method)(*args)

    def let_go(self) -> int:
        """Free what is held; PSS of the process before, bytes."""
        with Meter() as meter:
            pass
        self._holding = None
        release_memory()
        return meter.peak_pss

    def reference(self, task: Task, parts: list[int], clusters: Clusters) -> Reference:
        """What the sample looks like under the clusters, for later comparison with new shards."""
        config = ClusterConfig(**task.job.config["cluster"])
        sample = Held(task.folder, parts).sample(config.sample_rows)
        columns = score_columns(sample, np.empty((0, 0)), clusters)
        if isinstance(clusters, GaussianMixture):
            k, width = clusters.means.shape
            return Reference.from_rows(columns, k, width=width)
        return Reference.from_rows(columns, len(clusters))


class ClusterActors:
    """The actors of one `cluster` stage: started when first needed, killed at the end of the `with` block.

    Args:
        count: most actors; one CPU each.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._actors: list[Any] = []

    def __enter__(self) -> ClusterActors:
        return self

    def __exit__(self, *exc: object) -> None:
        for actor in self._actors:
            ray.kill(actor)

    def wait(self) -> None:
        """Start the actors unless they run, and wait until they answer."""
        if not self._actors:
            self._actors = [ClusterActor.remote() for _ in range(self._count)]  # type: ignore[attr-defined]
        ray.get([actor.ready.remote() for actor in self._actors])

    def start(self, task: Task, parts: list[int], k: int) -> Start:
        """Clusters of a job's sample; the restarts of k-means are dealt out among the actors."""
        restarts = list(range(ClusterConfig(**task.job.config["cluster"]).restarts))
        if task.job.params["method"] != "kmeans":
            restarts = restarts[:1]  # a mixture has its own, in one call
        found: list[Start] = ray.get(
            [
                actor.start.remote(task, parts, k, dealt)
                for actor, dealt in zip(self._actors, self._deal(restarts), strict=False)
            ]
        )
        best = min(found, key=lambda start: start.rank)
        seconds = max(start.seconds for start in found)
        return replace(best, seconds=seconds, peak_pss=sum(start.peak_pss for start in found))

    def _deal(self, items: list[int]) -> list[list[int]]:
        """Shares of the actors that get any."""
        count = min(self._count, len(items))
        return [items[i::count] for i in range(count)]

    def largest(self, task: Task, parts: list[int], frame: Frame) -> float:
        """The largest coordinate of the job's embeddings in a frame, from all actors."""
        dealt = zip(self._actors, self._deal(parts), strict=False)
        return max(ray.get([actor.largest.remote(task, some, frame) for actor, some in dealt]))

    def reference(self, task: Task, parts: list[int], clusters: Clusters) -> Reference:
        """The sample under the clusters, from one actor."""
        found: Reference = ray.get(self._actors[0].reference.remote(task, parts, clusters))
        return found

    def share(self, task: Task, parts: list[int], frame: Frame, most_bytes: int) -> list[Holding]:
        """The job's parts dealt out among the actors that get any.

        Args:
            most_bytes: of embeddings that all actors together may keep in memory.
        """
        held = Held(task.folder, parts)
        where: Literal["points", "embeddings", "files"] = "files"
        if held.point_bytes(frame.width) <= most_bytes:
            where = "points"
        elif held.num_bytes <= most_bytes:
            where = "embeddings"
        return [Holding(task, some, frame, where) for some in self._deal(parts)]

    def ask(self, holdings: list[Holding], method: str, *args: Any) -> list[Any]:
        """What a method of `HeldPoints` returns for each holding."""
        shared = [ray.put(argument) for argument in args]
        found: list[Any] = ray.get(
            [
                actor.ask.remote(holding, method, *shared)
                for actor, holding in zip(self._actors, holdings, strict=False)
            ]
        )
        return found

    def let_go(self) -> int:
        """Have all free what they hold; the sum of their PSS before, bytes."""
        return sum(ray.get([actor.let_go.remote() for actor in self._actors]))


def total(found: Iterable[Any]) -> Any:
    """The sum of statistics of one kind, in a copy: what Ray delivers is read-only."""
    summed = None
    for statistics in found:
        summed = copy.deepcopy(statistics) if summed is None else summed.merge(statistics)
    return summed
