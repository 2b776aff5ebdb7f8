"""How good generated images are, seen by one classifier: margins, agreement, coverage, density, distance.

Shape legend: N real images, M generated ones, D embedding width, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ssat_ray.selection.clusters import Clusters, score_columns
from ssat_ray.selection.scores import Array, Float64, top_confidence

QUANTILES = (0.05, 0.2, 0.25, 0.5, 0.75, 0.95)
NEAR = 0.2
"""Quantile of the base images' margins; images below it count as near the boundary."""
NEIGHBOURS = 5
MOST_IMAGES = 10_000
"""Of a set that is looked at: the first ones."""
_MOST_WIDTH = 4096
"""Of features whose covariances are compared; wider ones take minutes and gigabytes."""
_BLOCK_ROWS = 1024


@dataclass(frozen=True, eq=False)
class Seen:
    """A set of images as one classifier sees it.

    Attributes:
        h: (M, D) embeddings. logits: (M, K). score: (M,), lower is nearer the boundary.
    """

    h: Array
    logits: Array
    score: Array

    @classmethod
    def by(cls, embedder: Any, clusters: Clusters | None, images: NDArray[np.uint8]) -> Seen:
        """Images (M, H, W, C) by an `Embedder` and its clusters; the confidence is the score without any."""
        h, logits = embedder(images)
        return cls(h, logits, score_columns(h, logits, clusters)["score"])


def judged(base: Seen, guided: Seen, real: Seen, labels: dict[str, Array]) -> dict[str, Any]:
    """What one classifier says of guided images beside the base model's and real ones.

    Args:
        labels: (M,) int, of `base`, `guided` and `real`.

    Returns:
        near: share of the guided images below the base images' `NEAR` quantile of the score.
        median_ratio: of the guided images' median score to the base images'.
        and by set, where it applies: score (quantile -> value), agreement (share whose most probable
        class is the label; None without labels), confidence (mean), classes (K counts of the most probable one), coverage and
        density, and frechet (None for features wider than 4,096), all three against the real images.
    """
    sets = {"base": base, "guided": guided, "real": real}
    found: dict[str, Any] = {
        "near": float((guided.score < np.quantile(base.score, NEAR)).mean()),
        "median_ratio": float(np.median(guided.score) / np.median(base.score)),
    }
    most = min(len(base.h), len(guided.h))  # coverage and distances depend on the number of images
    for name, seen in sets.items():
        confidence, predicted = top_confidence(seen.logits)
        found[name] = {
            "images": len(seen.h),
            "score": {str(q): float(np.quantile(seen.score, q)) for q in QUANTILES},
            "agreement": agreement(predicted, labels[name]),
            "confidence": float(np.mean(confidence)),
            "classes": np.bincount(predicted, minlength=seen.logits.shape[1]).tolist(),
        }
        if name != "real":
            coverage, density = coverage_density(real.h, seen.h[:most])
            found[name] |= {"coverage": coverage, "density": density}
            narrow = real.h.shape[1] <= _MOST_WIDTH
            found[name]["frechet"] = frechet_distance(real.h, seen.h[:most]) if narrow else None
    return found


def agreement(predicted: Array, labels: Array) -> float | None:
    """Share of the labelled images whose predicted class is their label; None if none has one."""
    known = np.asarray(labels) >= 0
    return float((predicted == labels)[known].mean()) if known.any() else None


def coverage_density(real: Array, generated: Array, k: int = NEIGHBOURS) -> tuple[float, float]:
    """Coverage: share of the real points with a generated one within reach of their k-th real neighbour;
    density: how many such balls a generated point lies in, on average, over k.

    Args:
        real: (N, D), N > k. generated: (M, D). The first 10,000 rows of each count.

    Source: Naeem et al. 2020, Reliable Fidelity and Diversity Metrics for Generative Models.
    """
    x, y = (torch.from_numpy(np.asarray(a[:MOST_IMAGES], np.float64)) for a in (real, generated))
    if len(x) <= k:
        raise ValueError(f"coverage needs more than {k} real points, found {len(x)}")
    covered, within = 0, 0
    for start in range(0, len(x), _BLOCK_ROWS):
        rows = x[start : start + _BLOCK_ROWS]
        radius = (
            torch.cdist(rows, x).kthvalue(k + 1, dim=1).values
        )  # the point itself is the nearest
        inside = torch.cdist(rows, y) <= radius[:, None]
        covered += int(inside.any(1).sum())
        within += int(inside.sum())
    return covered / len(x), within / (k * len(y))


def frechet_distance(a: Array, b: Array) -> float:
    """|mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) of features (N, D) and (M, D).

    Source: Heusel et al. 2017; with the features of the classifier at hand it is not the "FID".
    """
    (mean_a, cov_a), (mean_b, cov_b) = (_moments(x) for x in (a, b))
    # tr (C_a C_b)^(1/2) is the sum of the square roots of the eigenvalues of the symmetric A C_b A, A = C_a^(1/2)
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
    distance = np.square(mean_a - mean_b).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * shared
    return float(max(distance, 0.0))


def _moments(x: Array) -> tuple[Float64, Float64]:
    wide = np.asarray(x, np.float64)
    return wide.mean(axis=0), np.atleast_2d(np.cov(wide, rowvar=False))


def nearest_distances(images: NDArray[np.uint8], train: NDArray[np.uint8]) -> Float64:
    """(M,) Euclidean distance of each image (M, H, W, C), pixels in [0, 1], to the nearest of `train`."""
    from sklearn.metrics import pairwise_distances_argmin_min

    flat, found = images.reshape(len(images), -1) / 255.0, np.full(len(images), np.inf)
    for start in range(0, len(train), _BLOCK_ROWS):  # all of a large set in float64 would not fit
        known = train[start : start + _BLOCK_ROWS]
        _, distances = pairwise_distances_argmin_min(flat, known.reshape(len(known), -1) / 255.0)
        found = np.minimum(found, distances)
    return found
