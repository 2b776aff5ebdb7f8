"""Exact Lloyd iterations against FAISS's, and the inertia reached against scikit-learn's."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ssat_ray.bench.clustering import actors_holding, one_thread
from ssat_ray.bench.measure import Comparison, alternate
from ssat_ray.config import ClusterConfig
from ssat_ray.data.labelled import SPLITS, read_labelled, unit_float
from ssat_ray.loading import load_config
from ssat_ray.models.embedding import Embedder
from ssat_ray.models.registry import build_classifier
from ssat_ray.selection.kmeans import fit_kmeans
from ssat_ray.selection.lloyd import LloydPoints, LloydStatistics, farthest, refine
from ssat_ray.selection.points import Frame
from ssat_ray.selection.scores import Float32

BITS = 24
_ITERATIONS = 5
_QUALITY_ROWS = 20_000
_SAMPLE = 5_000
_TRAINING_STEPS = 80


def run(
    rows: int = 1_000_000, width: int = 64, k: int = 10, threads: int = 2, repeats: int = 5
) -> list[Comparison]:
    """Seconds of Lloyd iterations from the same centroids, at 1 and `threads` threads; then quality.

    Timed on our side: assignment, sums and the new centroids, on points already on their grid. On one
    thread these are the calculations alone; `actors` are the pipeline's own clustering actors, one thread
    each, with all that they exchange. Timed by FAISS itself: search, update and the new index; not its
    checks and copies. Both walk through the same iterations over overlapping blobs, from centroids fitted
    on a sample, as the pipeline does. The first finds points without clusters, the others only sum those
    that change theirs.

    The quality lines time whole fits once, on 1 thread and without a bar, and note the inertia: ours with
    the default settings, of a fit on a sample refined on all rows / scikit-learn's best of 10 restarts on
    all rows. Only the last one has more rows than the sample.
    """
    h = blobs(rows, width, k, spread=0.3)
    frame = Frame.fit(h[:_SAMPLE], bits=BITS)
    points = frame.points(h)
    start = fit_kmeans(points[:_SAMPLE].numpy(), k, restarts=1).centroids
    few, many = min(rows, _QUALITY_ROWS), min(rows, 2 * ClusterConfig().sample_rows)
    noise = np.random.default_rng(0).random((many, width), dtype=np.float32)
    data = [
        ("blobs", blobs(few, width, k, spread=1.0)),
        ("digits embeddings", digits_embeddings()),
        ("uniform noise", noise[:few]),
        ("uniform noise", noise),
    ]
    with one_thread():
        what = f"k-means, {rows:,} x {width}, k = {k}"
        holder = partial(LloydPoints, points, frame.grid, k)
        lines = _iterations(
            f"{what}, 1 thread",
            lambda: _seconds(holder().statistics, start),
            lambda: _faiss_seconds(points.numpy(), start, 1),
            repeats,
        )
        with actors_holding(h, frame, threads) as fresh:
            lines += _iterations(
                f"{what}, {threads} actors",
                lambda: _seconds(partial(fresh(), "lloyd"), start),
                lambda: _faiss_seconds(points.numpy(), start, threads),
                repeats,
            )
        return lines + [_quality(name, h, k) for name, h in data]


Step = Callable[[Float32], LloydStatistics]
"""Centroids -> the totals of one assignment."""


def _iterations(
    what: str,
    our_seconds: Callable[[], np.ndarray],
    faiss_seconds: Callable[[], np.ndarray],
    repeats: int,
) -> list[Comparison]:
    ours: list[np.ndarray] = []
    bare: list[np.ndarray] = []
    alternate(
        {
            "ours": lambda: ours.append(our_seconds()),
            "bare": lambda: bare.append(faiss_seconds()),
        },
        repeats + 1,
    )
    parts = {"first iteration": slice(0, 1), f"iterations 2 to {_ITERATIONS}": slice(1, None)}
    return [
        Comparison(
            f"{what}, {name}",
            [float(seconds[part].mean()) for seconds in ours[1:]],  # the first call warms up
            [float(seconds[part].mean()) for seconds in bare[1:]],
            bar=1.0,
        )
        for name, part in parts.items()
    ]


def _seconds(step: Step, start: Float32) -> np.ndarray:
    """Wall seconds of each of our iterations."""
    centroids, marks = start, [time.perf_counter()]
    for _ in range(_ITERATIONS):
        centroids = step(centroids).centroids(centroids)
        marks.append(time.perf_counter())
    return np.diff(marks)


def _faiss_seconds(points: Float32, start: Float32, threads: int) -> np.ndarray:
    """Wall seconds of each iteration, from the clock that FAISS keeps."""
    import faiss
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    k, width = start.shape
    clustering = faiss.Clustering(width, k)
    clustering.niter = _ITERATIONS
    clustering.max_points_per_centroid = len(points)
    clustering.min_points_per_centroid = 1
    faiss.copy_array_to_vector(start.ravel(), clustering.centroids)
    before = faiss.omp_get_max_threads()
    with threadpool_limits(threads):
        faiss.omp_set_num_threads(threads)
        clustering.train(points, faiss.IndexFlatL2(width))
    faiss.omp_set_num_threads(before)
    stats: Any = clustering.iteration_stats  # a SWIG vector, which its stub calls a list
    return np.diff([0.0] + [stats.at(i).time for i in range(stats.size())])


def _quality(name: str, h: Float32, k: int) -> Comparison:
    from sklearn.cluster import KMeans

    found: dict[str, Float32] = {}

    def ours() -> None:
        found["ours"] = _pipeline(h, k)

    def bare() -> None:
        found["bare"] = KMeans(k, n_init=10, random_state=0).fit(h).cluster_centers_

    seconds = alternate({"ours": ours, "bare": bare}, 1)
    ratio = _inertia(h, found["ours"]) / _inertia(h, found["bare"])
    what = f"k-means to convergence, {name}, {len(h):,} x {h.shape[1]}, k = {k}"
    return Comparison(
        what, seconds["ours"], seconds["bare"], notes={"inertia ratio": f"{ratio:.6f}"}
    )


def _pipeline(h: Float32, k: int) -> Float32:
    """Centroids of a fit on a sample and exact iterations over all rows, as the defaults ask for."""
    config = ClusterConfig()
    sample = h[np.random.default_rng(0).permutation(len(h))[: config.sample_rows]]
    frame = Frame.fit(sample, bits=BITS)
    points = frame.points(h)
    holder = LloydPoints(points, frame.grid, k)

    def assign(centroids: Float32) -> LloydStatistics:
        return holder.statistics(centroids)

    def find(centroids: Float32, count: int) -> list[tuple[float, int, Float32]]:
        return farthest(points, np.arange(len(points)), centroids, count)

    start = fit_kmeans(
        frame.points(sample).numpy(), k, restarts=config.restarts, iterations=config.iterations
    ).centroids
    refined = refine(
        assign, find, start, iterations=config.refine_iterations, tolerance=config.tolerance
    )
    return (refined.centroids + frame.mean).astype(np.float32)


def _inertia(h: Float32, centroids: Float32) -> float:
    """Sum of squared distances to the nearest centroid, in float64."""
    total = 0.0
    c = centroids.astype(np.float64)
    for block in np.array_split(h.astype(np.float64), max(1, len(h) // 1000)):
        total += float(np.square(block[:, None] - c).sum(2).min(1).sum())
    return total


def blobs(rows: int, width: int, k: int, spread: float) -> Float32:
    """Unit normal blobs around centres of normal coordinates of deviation `spread`."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(k, width)).astype(np.float32) * np.float32(spread)
    h = rng.standard_normal((rows, width), dtype=np.float32)
    h += centres[rng.integers(k, size=rows)]
    return h


def digits_embeddings() -> Float32:
    """(1797, 64) embeddings of all digits by the preset's net, trained a second on the labelled ones."""
    config = load_config("scale-100m")
    digits = read_labelled(config.data)
    net = build_classifier(config.model, digits.image_shape, digits.num_classes, seed=0)
    images, labels = digits.tensors("labelled")
    x, draw = unit_float(images), torch.Generator().manual_seed(0)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    for _ in range(_TRAINING_STEPS):
        rows = torch.randperm(len(x), generator=draw)[:64]
        optimiser.zero_grad()
        F.cross_entropy(net(x[rows]), labels[rows]).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    whole = np.concatenate([digits.splits[name][0] for name in SPLITS])
    h, _ = Embedder(net.eval(), config.embed.layer)(whole)
    return np.asarray(h, np.float32)
