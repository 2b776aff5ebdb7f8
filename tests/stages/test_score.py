"""score: the score tables of a real run against float64 distances and SciPy densities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.metrics import pairwise_distances

from ssat_ray.config import RuntimeConfig
from ssat_ray.data.pool import MANIFEST, manifest
from ssat_ray.data.shard import Shard, write_shard
from ssat_ray.models.embedding import Embedder
from ssat_ray.models.preact_small import PreActSmall
from ssat_ray.selection.clusters import Clusters, load_clusters
from ssat_ray.selection.gmm import fit_gmm
from ssat_ray.selection.table import encode, score_file, score_files
from ssat_ray.stages.base import StageContext, Task
from ssat_ray.stages.score import _finish, score_shard
from ssat_ray.store import Job, Store


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


def test_scores_of_a_shard_that_was_quarantined_later_go(tmp_path: Path) -> None:
    """A killed run had scored it, and the next one could not read it any more."""
    pool, folder = tmp_path / "pool", tmp_path / "score"
    entries = []
    for i in range(3):
        images = np.zeros((5, 8, 8, 1), np.uint8)
        entries.append(write_shard(pool, i, Shard(5 * i + np.arange(5), images, np.zeros(5, int))))
        folder.mkdir(exist_ok=True)
        (folder / score_file(i)).write_bytes(encode({"id": np.arange(5)}))
    (pool / MANIFEST).write_text(manifest([entries], (1, 8, 8), 10))
    job = Job("score", 1, {}, {"on_bad_shard": "quarantine"}, {"pool": Job("pool", 1, {}, {})})
    bad = {"file": entries[1]["file"], "rows": 5, "reason": "altered"}
    notes = [{"rows": 5, "bytes": 9}, {"rows": 0, "bytes": 0, "quarantined": bad}]
    task = Task(job, folder, {"pool": pool}, tmp_path)
    context = StageContext(Store(tmp_path), RuntimeConfig())
    assert _finish(task, [*notes, notes[0]], context)["quarantined"] == [bad]
    assert score_files(folder) == [folder / score_file(0), folder / score_file(2)]


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
