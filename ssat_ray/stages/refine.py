"""Clusters started on a sample, then refined exactly by actors that hold the embeddings.

The driver holds centroids or a mixture only, and writes them down before each iteration: a killed run goes
on at the iteration it was in. The actors exchange sums, counts and inertia.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from ssat_ray.board import board
from ssat_ray.config import ClusterConfig
from ssat_ray.places import Place, write_atomic
from ssat_ray.selection import em, lloyd
from ssat_ray.selection.clusters import Clusters
from ssat_ray.selection.exact import Grid
from ssat_ray.selection.gmm import GaussianMixture
from ssat_ray.selection.points import Frame
from ssat_ray.selection.scores import Array, Float32
from ssat_ray.stages.base import Task
from ssat_ray.stages.cluster_actors import ClusterActors, total
from ssat_ray.stages.parts import NOTES

CHECKPOINT = f"{NOTES}/refine.safetensors"


@dataclass(frozen=True)
class State:
    """Where a refinement is: clusters in the frame's coordinates, and what came before them."""

    frame: Frame
    clusters: Clusters
    history: tuple[float, ...] = ()
    seconds: float = 0.0

    def save(self, path: Place) -> None:
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
    def load(cls, path: Place, covariance: str) -> State:
        tensors = load(path.read_bytes())
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


def refine(
    task: Task, parts: list[int], k: int, resident_bytes: int, actors: ClusterActors
) -> tuple[Clusters, dict[str, Any], dict[str, Any]]:
    """The clusters of a job in the embeddings' coordinates, what to say of them, and what to record.

    Args:
        parts: those that hold embeddings.
        k: clusters.
        resident_bytes: embeddings that the actors may keep in memory, in total.
    """
    begun = time.perf_counter()
    config, path = ClusterConfig(**task.job.config["cluster"]), task.folder / CHECKPOINT
    actors.wait()
    peak, fitted = 0, 0.0
    if path.exists():
        state = State.load(path, config.covariance)
    else:
        found = actors.start(task, parts, k)
        frame = found.frame
        if isinstance(found.clusters, GaussianMixture):
            # Squares must not overflow the grid, whatever the sample left out.
            frame = frame.covering(actors.largest(task, parts, frame))
        state = State(frame, found.clusters, seconds=found.seconds)
        state.save(path)
        peak, fitted = found.peak_pss, found.seconds
    before = state.seconds
    startup = time.perf_counter()
    holdings = actors.share(task, parts, state.frame, resident_bytes)
    posts = board()

    def checkpoint(clusters: Clusters, history: tuple[float, ...]) -> None:
        State(state.frame, clusters, history, before + time.perf_counter() - startup).save(path)
        done = f"{history[-1]:.6g}" if history else ""
        posts.post.remote(
            task.job.label, len(history), config.refine_iterations + 1, "iterations", done
        )

    def ask(method: str, *args: Any) -> list[Any]:
        return actors.ask(holdings, method, *args)

    clusters, about = _iterate(ask, state, config, checkpoint)
    peak = max(peak, actors.let_go())
    seconds = before + time.perf_counter() - startup
    summary = actors.reference(task, parts, clusters)
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
    ask: Callable[..., list[Any]],
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
            lambda m: total(ask("em", m)), state.clusters, state.frame, reg_covar=1e-6, **options
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
        found = [row for rows in ask("farthest", centroids, count) for row in rows]
        return lloyd.best(found, count)

    done = lloyd.refine(lambda c: total(ask("lloyd", c)), farthest, state.clusters, **options)
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
