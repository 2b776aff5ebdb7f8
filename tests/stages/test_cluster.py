"""cluster: the k-means of a real run against scikit-learn."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from sklearn.cluster import KMeans as ScikitKMeans
from sklearn.metrics import pairwise_distances

from ssat_ray.errors import UserError
from ssat_ray.selection.clusters import load_clusters
from ssat_ray.stages.cluster import check_finite


@pytest.mark.ray
def test_kmeans_matches_scikit_learn(tiny_run: Any, folder: Any, embeddings: Any) -> None:
    _, h, _ = embeddings
    where = folder(tiny_run, "lcs-km", "cluster")
    about = json.loads((where / "clusters.json").read_text())
    oracle = ScikitKMeans(10, n_init=20, random_state=1).fit(h.astype(np.float64))
    assert about["inertia"] <= 1.01 * oracle.inertia_
    distances = pairwise_distances(h.astype(np.float64), load_clusters(where))
    assert about["inertia"] == pytest.approx((distances.min(1) ** 2).sum(), rel=1e-4)


@pytest.mark.parametrize(
    ("storage", "mend"), [("float16", "set cluster.storage=float32"), ("float32", "mend or remove")]
)
def test_an_embedding_that_is_not_finite_is_named(storage: str, mend: str) -> None:
    h = np.ones((5, 3), np.float32)
    h[[2, 4], 1] = 70_000.0 if storage == "float16" else np.nan
    with np.errstate(over="ignore"):
        stored = h.astype(storage)
    check_finite(h[:2].astype(storage), np.arange(2), "shard-00000.parquet", storage)
    with pytest.raises(UserError, match=rf"shard-00001.*image 12 is not finite \(2 such.*{mend}"):
        check_finite(stored, np.arange(10, 15), "shard-00001.parquet", storage)
