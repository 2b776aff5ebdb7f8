"""Fitted clusters as files, and the scores that they give."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save

from ssat_ray.places import Place, local_copy
from ssat_ray.selection.gmm import GaussianMixture
from ssat_ray.selection.scores import (
    Array,
    Float32,
    confidence_score,
    easy_score,
    gmm_log_likelihood,
    gmm_margin,
    kmeans_margin,
    two_nearest,
)

WEIGHTS, DESCRIPTION = "clusters.safetensors", "clusters.json"
Clusters = Float32 | GaussianMixture


def cluster_files(tensors: dict[str, Array], about: dict[str, Any]) -> dict[str, bytes]:
    """The files of the artefact: name -> content."""
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    return {WEIGHTS: save(arrays), DESCRIPTION: json.dumps(about, indent=1).encode()}


def load_clusters(folder: Place) -> Clusters:
    """Centroids (k, d) float32, or the mixture."""
    tensors, about = load_file(local_copy(folder / WEIGHTS)), describe(folder)
    if about["method"] == "kmeans":
        return tensors["centroids"]
    return GaussianMixture.from_tensors(tensors, about)


def describe(folder: Place) -> dict[str, Any]:
    """What `clusters.json` says."""
    about: dict[str, Any] = json.loads((folder / DESCRIPTION).read_text())
    return about


def score_columns(h: Array, logits: Array, clusters: Clusters | None) -> dict[str, Array]:
    """The columns of the score table: margins by the clusters given, or by confidence without any.

    Args:
        h: (N, d) float32 embeddings.
        logits: (N, C) float32.
    """
    if clusters is None:
        columns: dict[str, Array] = {"score": confidence_score(logits)}
    elif isinstance(clusters, GaussianMixture):
        return mixture_columns(clusters.log_joint(h))
    else:
        d1, d2, cluster = two_nearest(h, clusters)
        columns = {"d1": d1, "d2": d2, "cluster": cluster, "score": kmeans_margin(d1, d2)}
    return _float32(columns)


def mixture_columns(log_joint: Array) -> dict[str, Array]:
    """The columns by a mixture, from its (N, k) log-joint densities in nats."""
    l1, l2, cluster, score = gmm_margin(log_joint)
    likelihood = gmm_log_likelihood(log_joint)
    columns: dict[str, Array] = {"l1": l1, "l2": l2, "log_likelihood": likelihood}
    return _float32({**columns, "cluster": cluster, "score": score})


def _float32(columns: dict[str, Array]) -> dict[str, Array]:
    return {
        name: values if name == "cluster" else values.astype(np.float32)
        for name, values in columns.items()
    }


def score_of(method: str, columns: Mapping[str, Array]) -> Array:
    """The score a method ranks by, from its table's columns; lower = nearer the boundary."""
    if method == "easy":
        return easy_score(columns["d1"], columns["d2"])
    return columns["log_likelihood"] if method == "gmm-ll" else columns["score"]


def score_reads(method: str) -> list[str]:
    """The columns that `score_of` needs."""
    return {"easy": ["d1", "d2"], "gmm-ll": ["log_likelihood"]}.get(method, ["score"])
