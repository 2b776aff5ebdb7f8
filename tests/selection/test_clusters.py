"""Clusters on disk and the columns they give: round trips, and sums over direct definitions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from ssat_ray.selection.clusters import (
    cluster_files,
    load_clusters,
    score_columns,
    score_of,
    score_reads,
)
from ssat_ray.selection.gmm import GaussianMixture, fit_gmm

RNG = np.random.default_rng(0)
H = RNG.normal(size=(300, 5)).astype(np.float32)
LOGITS = RNG.normal(size=(300, 4)).astype(np.float32)


def _store(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def test_centroids_round_trip(tmp_path: Path) -> None:
    centroids = H[:7].copy()
    files = cluster_files({"centroids": centroids, "counts": np.arange(7)}, {"method": "kmeans"})
    found = load_clusters(_store(tmp_path, files))
    assert isinstance(found, np.ndarray) and np.array_equal(found, centroids)


def test_a_mixture_round_trips(tmp_path: Path) -> None:
    mixture = fit_gmm(H, 3, covariance="tied", pca_dims=2)
    about = {"method": "gmm", **mixture.metadata()}
    found = load_clusters(_store(tmp_path, cluster_files(dict(mixture.to_tensors()), about)))
    assert isinstance(found, GaussianMixture)
    assert np.array_equal(found.log_joint(H), mixture.log_joint(H))


def test_kmeans_columns_are_the_two_smallest_distances() -> None:
    columns = score_columns(H, LOGITS, H[:7])
    distances = np.sort(cdist(H.astype(np.float64), H[:7].astype(np.float64)), axis=1)
    np.testing.assert_allclose(columns["d1"], distances[:, 0], rtol=1e-6)
    np.testing.assert_allclose(columns["d2"], distances[:, 1], rtol=1e-6)
    np.testing.assert_allclose(columns["score"], distances[:, 1] - distances[:, 0], atol=1e-6)
    assert all(columns[name].dtype == np.float32 for name in ("d1", "d2", "score"))
    assert columns["cluster"].dtype == np.int32


def test_mixture_columns_are_the_two_largest_log_joints() -> None:
    mixture = fit_gmm(H, 3)
    joint = mixture.log_joint(H)
    columns = score_columns(H, LOGITS, mixture)
    top = -np.sort(-joint, axis=1)
    np.testing.assert_allclose(columns["score"], top[:, 0] - top[:, 1], rtol=1e-6, atol=1e-6)
    assert np.array_equal(columns["cluster"], joint.argmax(1))
    np.testing.assert_allclose(columns["log_likelihood"], np.log(np.exp(joint).sum(1)), rtol=1e-6)


def test_confidence_without_clusters() -> None:
    p = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
    found = score_columns(H, LOGITS, None)["score"]
    np.testing.assert_allclose(found, -np.log(1 - p.max(1)), rtol=1e-4)


@pytest.mark.parametrize("method", ["pcs", "lcs-km", "lcs-gmm", "gmm-ll", "easy"])
def test_a_method_reads_only_the_columns_it_names(method: str) -> None:
    clusters = {"pcs": None, "lcs-gmm": fit_gmm(H, 3), "gmm-ll": fit_gmm(H, 3)}.get(method, H[:7])
    columns = score_columns(H, LOGITS, clusters)
    read = {name: columns[name] for name in score_reads(method)}
    score = score_of(method, read)
    expected = {"easy": lambda: columns["d1"] - columns["d2"]}.get(
        method, lambda: columns["log_likelihood" if method == "gmm-ll" else "score"]
    )()
    assert np.array_equal(score, expected)
