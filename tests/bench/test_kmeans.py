"""The bench of k-means, tiny: its lines, and the inertia it notes."""

from __future__ import annotations

import numpy as np
import pytest

from ssat_ray.bench import kmeans
from ssat_ray.data.labelled import SPLITS, read_labelled
from ssat_ray.loading import load_config
from ssat_ray.selection.kmeans import fit_kmeans
from ssat_ray.selection.scores import two_nearest


@pytest.mark.ray
def test_lines_and_quality() -> None:
    lines = kmeans.run(rows=20_000, width=8, k=5, threads=2, repeats=1)
    speed, quality = lines[:4], lines[4:]
    cases = [line.what.split(", ")[3:] for line in speed]
    parts = ("first iteration", f"iterations 2 to {kmeans._ITERATIONS}")
    assert cases == [[who, part] for who in ("1 thread", "2 actors") for part in parts]
    for line in speed:
        assert line.bar == 1 and len(line.ours) == len(line.bare) == 1
        assert min(line.ours + line.bare) >= 0
    kinds = ["blobs", "digits embeddings", "uniform noise", "uniform noise"]
    assert [line.what.split(", ")[1] for line in quality] == kinds
    for line in quality:
        assert 0.9 < float(line.notes["inertia ratio"]) <= 1.001


def test_the_embeddings_are_those_of_a_net_that_knows_the_digits() -> None:
    """Their clusters are mostly of one class; those of an untrained net are not (0.6 with these seeds)."""
    digits = read_labelled(load_config("scale-100m").data)
    labels = np.concatenate([digits.splits[name][1] for name in SPLITS])
    h = kmeans.digits_embeddings()
    cluster = two_nearest(h, fit_kmeans(h, 10, restarts=2).centroids)[2]
    shares = [np.bincount(labels[cluster == j]).max() for j in range(10)]
    assert h.shape == (1797, 64)
    assert sum(shares) > 0.85 * len(h)


def test_inertia_against_a_closed_form() -> None:
    h = np.array([[0, 0], [2, 0], [0, 5]], np.float32)
    assert kmeans._inertia(h, np.array([[1, 0], [0, 4]], np.float32)) == 3.0


def test_both_sides_walk_through_the_same_iterations() -> None:
    h = kmeans.blobs(3000, 8, 5, spread=1.0)
    frame = kmeans.Frame.fit(h, bits=kmeans.BITS)
    points = frame.points(h)
    start = points[:5].numpy()
    ours = kmeans._seconds(kmeans.LloydPoints(points, frame.grid, 5).statistics, start)
    bare = kmeans._faiss_seconds(points.numpy(), start, 2)
    assert ours.shape == bare.shape == (kmeans._ITERATIONS,)
    assert (ours > 0).all() and (bare >= 0).all()
