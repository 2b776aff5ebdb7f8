"""score: the score tables of a real run against float64 distances and SciPy densities."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.metrics import pairwise_distances

from ssat_ray.data.shard import Shard
from ssat_ray.models.embedding import Embedder
from ssat_ray.models.preact_small import PreActSmall
from ssat_ray.selection.clusters import Clusters, load_clusters
from ssat_ray.selection.gmm import fit_gmm
from ssat_ray.stages.score import score_shard


@pytest.mark.parametrize("method", ["kmeans", "gmm", None])
def test_an_image_without_a_label_counts_for_the_models_class(method: str | None) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (50, 8, 8, 1), dtype=np.uint8)
    labels = np.where(np.arange(50) % 3 == 0, 7, -1)
    embedder = Embedder(PreActSmall(1, 10, (8, 16), (2, 2)).eval(), "pooled")
    h, logits = embedder(images)
    clusters: Clusters | None = None if method is None else h[:4]
    if method == "gmm":
        clusters = fit_gmm(h, 2, restarts=1)
    columns, _ = score_shard(embedder, clusters, Shard(np.arange(50), images, labels))
    expected = np.where(labels == 7, 7, logits.argmax(1))
    np.testing.assert_array_equal(columns["label"], expected)
    assert "predicted" not in columns


@pytest.mark.ray
def test_kmeans_scores_match_float64_distances(
    tiny_run: Any, folder: Any, scores: Any, embeddings: Any
) -> None:
    ids, h, logits = embeddings
    columns = scores(folder(tiny_run, "lcs-km", "score"))
    assert np.array_equal(np.sort(columns["id"]), ids)
    ordered = {name: values[np.argsort(columns["id"])] for name, values in columns.items()}
    centroids = load_clusters(folder(tiny_run, "lcs-km", "cluster"))
    distances = np.sort(pairwise_distances(h.astype(np.float64), centroids), axis=1)
    np.testing.assert_allclose(ordered["d1"], distances[:, 0], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(ordered["score"], distances[:, 1] - distances[:, 0], atol=1e-3)
    p = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(
        ordered["confidence"], (p / p.sum(1, keepdims=True)).max(1), rtol=1e-4
    )


@pytest.mark.ray
def test_mixture_scores_match_scipy(
    tiny_run: Any, folder: Any, scores: Any, embeddings: Any
) -> None:
    _, h, _ = embeddings
    columns = scores(folder(tiny_run, "lcs-gmm", "score"))
    mixture = load_clusters(folder(tiny_run, "lcs-gmm", "cluster"))
    joint = np.stack(
        [
            np.log(w) + multivariate_normal(m, np.diag(c), allow_singular=True).logpdf(h)
            for w, m, c in zip(mixture.weights, mixture.means, mixture.covariances, strict=True)
        ],
        axis=1,
    )
    top = -np.sort(-joint, axis=1)
    order = np.argsort(columns["id"])
    np.testing.assert_allclose(columns["l1"][order], top[:, 0], rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(columns["score"][order], top[:, 0] - top[:, 1], rtol=1e-2, atol=5e-2)
