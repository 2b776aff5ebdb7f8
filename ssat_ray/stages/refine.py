"""Fit clusters on a sample, then refine them exactly on actors that hold the embeddings (Ray actors).

The driver holds centroids or a mixture only, and writes them down before each iteration: a killed run goes
on at the iteration it was in. The actors exchange sums, counts and inertia.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from safetensors.numpy import load_file, save

from ssat_ray.config import ClusterConfig, RuntimeConfig
from ssat_ray.runtime import Meter, board, keep_memory, use_threads
from ssat_ray.selection import em, lloyd
from ssat_ray.selection.clusters import Clusters, score_columns
from ssat_ray.selection.drift import Reference
from ssat_ray.selection.exact import Grid
from ssat_ray.selection.gmm import GaussianMixture, fit_gmm
from ssat_ray.selection.kmeans import fit_kmeans
from ssat_ray.selection.points import Frame
from ssat_ray.selection.scores import Array, Float32, Int64
from ssat_ray.stages.base import Task
from ssat_ray.stages.held import Held
from ssat_ray.stages.parts import NOTES
from ssat_ray.store import write_atomic

CHECKPOINT = f"{NOTES}/refine.safetensors"
KMEANS_BITS = 24
_GROUP_ROWS = 1 << 15


@dataclass(frozen=True)
class State:
    """Where a refinement is: clusters in the frame's coordinates, and what came before them."""

    frame: Frame
    clusters: Clusters
    history: tuple[float, ...] = ()
    seconds: float = 0.0

    def save(self, path: Path) -> None:
        tensors: dict[str, Array] = {
            "frame.mean": self.frame.mean,
            "frame.exponents": self.frame.exponents,
            "frame.grid": np.array([self.frame.grid.exponent, self.frame.grid.bits]),
            "history": np.array(self.history),
            "seconds": np.array([self.seconds]),
        }
        if self.frame.components is not None:
            tensors["frame.components"] = self.frame.components
        if isinstance(self.clusters, GaussianMixture):
            tensors |= {f"mixture.{n}": a for n, a in self.clusters.to_tensors().items()}
        else:
            tensors["centroids"] = self.clusters
        write_atomic(path, save({n: np.ascontiguousarray(a) for n, a in tensors.items()}))

    @classmethod
    def load(cls, path: Path, covariance: str) -> State:
        tensors = load_file(path)
        grid = Grid(*(int(v) for v in tensors["frame.grid"]))
        components = tensors.get("frame.components")
        frame = Frame(tensors["frame.mean"], components, tensors["frame.exponents"], grid)
        clusters: Clusters
        if "centroids" in tensors:
            clusters = tensors["centroids"]
        else:
            named = {n.partition(".")[2]: a for n, a in tensors.items() if n.startswith("mixture.")}
            about = {"log_likelihood": 0.0, "num_iterations": 0, "converged": False}
            clusters = GaussianMixture.from_tensors(named, {"covariance_type": covariance, **about})
        return cls(frame, clusters, tuple(tensors["history"]), float(tensors["seconds"][0]))


@ray.remote(num_cpus=1, max_retries=3)
def start(task: Task, parts: list[int], k: int) -> tuple[State, int]:
    """The start on the sample, and the process's peak PSS in bytes."""
    use_threads(1)
    config = ClusterConfig(**task.job.config["cluster"])
    with Meter() as meter:
        sample = Held(task.folder, parts).sample(config.sample_rows)
        clusters: Clusters
        if task.job.params["method"] == "kmeans":
            import faiss

            faiss.omp_set_num_threads(1)
            fit = fit_kmeans(
                sample, k, restarts=config.restarts, iterations=config.iterations, seed=task.seed
            )
            frame = Frame.fit(sample, bits=KMEANS_BITS)
            clusters = (fit.centroids - frame.mean).astype(np.float32)
        else:
            mixture = fit_gmm(
                sample, k, covariance=config.covariance, pca_dims=config.pca_dims, seed=task.seed
            )
            frame = em.mixture_frame(sample, mixture)
            clusters = em.into_frame(mixture, frame)
    return State(frame, clusters, seconds=meter.seconds), meter.peak_pss


@ray.remote(num_cpus=1, max_retries=3)
def reference(task: Task, parts: list[int], clusters: Clusters) -> Reference:
    """What the sample looks like under the clusters, for later comparison with new shards."""
    use_threads(1)
    config = ClusterConfig(**task.job.config["cluster"])
    sample = Held(task.folder, parts).sample(config.sample_rows)
    columns = score_columns(sample, np.empty((0, 0)), clusters)
    if isinstance(clusters, GaussianMixture):
        k, width = clusters.means.shape
        return Reference.from_rows(columns, k, width=width)
    return Reference.from_rows(columns, len(clusters))


@ray.remote(num_cpus=1, max_restarts=8, max_task_retries=8)
class ClusterActor:
    """Holds the embeddings of some parts and returns their statistics. A restarted actor reads them again."""

    def __init__(self, task: Task, parts: list[int], frame: Frame, resident: bool) -> None:
        use_threads(1)
        keep_memory()
        self.held, self.frame = Held(task.folder, parts), frame
        self._ids: Int64 | None = None
        self._points = [self._place(h) for h in self.held.embeddings()] if resident else None
        self._assigned: list[lloyd.LloydPoints] = []

    def _place(self, h: Array) -> torch.Tensor:
        return self.frame.points(np.asarray(h, np.float32))

    def _groups(self) -> Any:
        """Points in tensors: of a part each if they are resident, otherwise of bounded size."""
        if self._points is not None:
            return iter(self._points)
        return (
            self._place(h[i : i + _GROUP_ROWS])
            for h in self.held.embeddings()
            for i in range(0, len(h), _GROUP_ROWS)
        )

    def lloyd(self, centroids: Float32) -> lloyd.LloydStatistics:
        if self._points is None:
            grid = self.frame.grid
            return _total(lloyd.lloyd_statistics(x, centroids, grid) for x in self._groups())
        if not self._assigned:
            k = len(centroids)
            self._assigned = [lloyd.LloydPoints(x, self.frame.grid, k) for x in self._points]
        return _total(points.statistics(centroids) for points in self._assigned)

    def em(self, mixture: GaussianMixture) -> em.EMStatistics:
        return _total(em.em_statistics(x, mixture, self.frame.grid) for x in self._groups())

    def farthest(self, centroids: Float32, count: int) -> list[tuple[float, int, Float32]]:
        if self._ids is None:
            self._ids = self.held.ids()
        found, first = [], 0
        for x in self._groups():
            ids = self._ids[first : first + len(x)]
            found += lloyd.farthest(x, ids, centroids, count)
            first += len(x)
        return lloyd.best(found, count)

    def peak_pss(self) -> int:
        with Meter() as meter:
            return meter.peak_pss


def _total(found: Any) -> Any:
    """The sum of statistics of one kind, in a copy: what Ray delivers is read-only."""
    total = None
    for statistics in found:
        total = copy.deepcopy(statistics) if total is None else total.merge(statistics)
    return total


def refine(
    task: Task, parts: list[int], k: int, runtime: RuntimeConfig
) -> tuple[Clusters, dict[str, Any], dict[str, Any]]:
    """The clusters of a job in the embeddings' coordinates, what to say of them, and what to record.

    Args:
        parts: those that hold embeddings.
        k: clusters.
    """
    begun = time.perf_counter()
    config, path = ClusterConfig(**task.job.config["cluster"]), task.folder / CHECKPOINT
    peak, fitted = 0, 0.0
    if path.exists():
        state = State.load(path, config.covariance)
    else:
        state, peak = ray.get(start.remote(task, parts, k))
        state.save(path)
        fitted = state.seconds
    before = state.seconds
    startup = time.perf_counter()
    held = Held(task.folder, parts)
    resident = held.num_bytes <= runtime.resident_mib * 2**20
    groups = [parts[i :: runtime.actors] for i in range(min(runtime.actors, len(parts)))]
    actors = [ClusterActor.remote(task, g, state.frame, resident) for g in groups]  # type: ignore[attr-defined]
    posts = board()

    def checkpoint(clusters: Clusters, history: tuple[float, ...]) -> None:
        State(state.frame, clusters, history, before + time.perf_counter() - startup).save(path)
        done = f"{history[-1]:.6g}" if history else ""
        posts.post.remote(
            task.job.label, len(history), config.refine_iterations + 1, "iterations", done
        )

    def ask(method: str) -> Callable[..., Any]:
        return lambda *args: ray.get([getattr(a, method).remote(*args) for a in actors])

    try:
        clusters, about = _iterate(ask, state, config, checkpoint)
        peak = max(peak, sum(ray.get([a.peak_pss.remote() for a in actors])))
    finally:
        for actor in actors:
            ray.kill(actor)
    seconds = before + time.perf_counter() - startup
    summary = ray.get(reference.remote(task, parts, clusters))
    return (
        clusters,
        {**about, "reference": summary.to_json()},
        {
            "fit_seconds": seconds,
            "fit_peak_pss_bytes": peak,
            "startup_seconds": startup - begun - fitted,
        },
    )


def _iterate(
    ask: Callable[[str], Callable[..., Any]],
    state: State,
    config: ClusterConfig,
    checkpoint: Callable[[Clusters, tuple[float, ...]], None],
) -> tuple[Clusters, dict[str, Any]]:
    options: dict[str, Any] = {
        "iterations": config.refine_iterations,
        "tolerance": config.tolerance,
        "history": state.history,
        "checkpoint": checkpoint,
    }
    if isinstance(state.clusters, GaussianMixture):
        mixture, history = em.refine(
            lambda m: _total(ask("em")(m)), state.clusters, state.frame, reg_covar=1e-6, **options
        )
        found = em.out_of_frame(mixture, state.frame)
        order = np.lexsort(found.means.T[::-1])
        tied = found.covariance_type == "tied"
        found = replace(
            found,
            weights=found.weights[order],
            means=found.means[order],
            covariances=found.covariances if tied else found.covariances[order],
        )
        shift = found.log_likelihood - mixture.log_likelihood
        return found, {
            **found.metadata(),
            "log_likelihood_per_iteration": [value + shift for value in history],
        }

    def farthest(centroids: Float32, count: int) -> list[tuple[float, int, Float32]]:
        found = [row for rows in ask("farthest")(centroids, count) for row in rows]
        return lloyd.best(found, count)

    done = lloyd.refine(lambda c: _total(ask("lloyd")(c)), farthest, state.clusters, **options)
    centroids = (done.centroids + state.frame.mean).astype(np.float32)
    order = np.lexsort(centroids.T[::-1])
    counts = done.counts[order]
    return centroids[order], {
        "inertia": done.inertia[-1],
        "inertia_per_iteration": list(done.inertia),
        "converged": done.converged,
        "counts": counts.tolist(),
        "imbalance": float(len(counts) * np.square(counts / counts.sum()).sum()),
    }
