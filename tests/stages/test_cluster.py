"""cluster: the k-means of a real run against scikit-learn."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from sklearn.cluster import KMeans as ScikitKMeans
from sklearn.metrics import pairwise_distances

from ssat_ray.selection.clusters import load_clusters

pytestmark = pytest.mark.ray


def test_kmeans_matches_scikit_learn(tiny_run: Any, folder: Any, embeddings: Any) -> None:
    _, h, _ = embeddings
    where = folder(tiny_run, "lcs-km", "cluster")
    about = json.loads((where / "clusters.json").read_text())
    oracle = ScikitKMeans(10, n_init=20, random_state=1).fit(h.astype(np.float64))
    assert about["inertia"] <= 1.01 * oracle.inertia_
    distances = pairwise_distances(h.astype(np.float64), load_clusters(where))
    assert about["inertia"] == pytest.approx((distances.min(1) ** 2).sum(), rel=1e-4)
