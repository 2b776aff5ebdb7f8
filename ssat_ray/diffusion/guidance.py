"""Guidance of a DDPM's fine-tuning: how near the decision boundary the image it predicts is, with gradient.

The image is the closed-form prediction of x0 from one U-Net output, for a whole batch at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ssat_ray.models.base import EmbeddingClassifier
from ssat_ray.selection.clusters import Clusters
from ssat_ray.selection.gmm import GaussianMixture

Kind = Literal["pcg", "lcg-km", "lcg-gmm"]
TimestepWeight = Literal["uniform", "alpha-bar", "cut-off", "min-snr"]


def predicted_x0(kind: str, x_t: Tensor, predicted: Tensor, alpha_bar: Tensor) -> Tensor:
    """The image (B, C, H, W) in [-1, 1] and beyond that a U-Net output stands for.

    Args:
        kind: the scheduler's `prediction_type`: epsilon, v_prediction or sample.
        x_t: (B, C, H, W) noisy images. predicted: the U-Net's output for them.
        alpha_bar: (B,) share of the signal's variance at each image's timestep.

    Raises:
        ValueError: another prediction type.

    Source: Ho et al. 2020, equation 15; Salimans and Ho 2022 for v-prediction.
    """
    signal = alpha_bar.sqrt().view(-1, 1, 1, 1)
    noise = (1 - alpha_bar).sqrt().view(-1, 1, 1, 1)
    if kind == "epsilon":
        return (x_t - noise * predicted) / signal
    if kind == "v_prediction":
        return signal * x_t - noise * predicted
    if kind == "sample":
        return predicted
    raise ValueError(f"prediction_type {kind!r}: expected epsilon, v_prediction or sample")


def as_image(x0: Tensor) -> Tensor:
    """[-1, 1] -> [0, 1], clamped in value; the gradient passes as if it were not.

    A clamp's own gradient is zero in every pixel that is out of range: 40 % of the digits'.
    """
    x = (x0 + 1) / 2
    return x + (x.clamp(0, 1) - x).detach()


def timestep_weight(kind: TimestepWeight, alpha_bar: Tensor, cut_off: float = 0.5) -> Tensor:
    """(B,) in [0, 1]: how much the guidance of an image counts, whose x0 is a guess where noise is high.

    uniform: 1. alpha-bar: its alpha_bar. cut-off: 1 from alpha_bar = cut_off on, else 0. min-snr:
    min(alpha_bar / (1 - alpha_bar), 5) / 5, the weight of Hang et al. 2023 with gamma = 5.
    """
    if kind == "uniform":
        return torch.ones_like(alpha_bar)
    if kind == "alpha-bar":
        return alpha_bar
    if kind == "cut-off":
        return (alpha_bar >= cut_off).to(alpha_bar.dtype)
    return (alpha_bar / (1 - alpha_bar)).clamp(max=5) / 5


@dataclass(frozen=True)
class Guide:
    """What fine-tuning lowers: a frozen classifier's score of an image, in units of the base pool's median.

    Args:
        kind: pcg: the highest softmax probability. lcg-km: distance to the second nearest centroid less that
            to the nearest. lcg-gmm: largest log-joint density less the second largest, in nats.
        classifier: frozen, in eval mode.
        layer: of the embedding that the clusters are of.
        clusters: centroids (k, d) or a mixture; None for pcg.
        scale: the base pool's median score, above 0.
    """

    kind: Kind
    classifier: EmbeddingClassifier
    layer: str
    clusters: Clusters | None
    scale: float

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(
                f"{self.kind}: the base pool's median score must be above 0, found {self.scale}"
            )

    def __call__(self, images: Tensor) -> Tensor:
        """(B,) scores of images (B, C, H, W) in [0, 1]; lower is nearer the boundary."""
        h, logits = self.classifier.embed_with_logits(images, self.layer)
        if self.kind == "pcg":
            return logits.softmax(dim=1).amax(dim=1) / self.scale
        if isinstance(self.clusters, GaussianMixture):
            return mixture_margin(h, self.clusters) / self.scale
        assert self.clusters is not None
        return centroid_margin(h, torch.from_numpy(self.clusters).to(h)) / self.scale


def centroid_margin(h: Tensor, centroids: Tensor) -> Tensor:
    """d_(2) - d_(1) of h (B, d) to the centroids (k, d), Euclidean: (B,), with gradient."""
    with torch.no_grad():
        halves = 0.5 * centroids.square().sum(1) - h @ centroids.t()
        nearest = halves.topk(2, dim=1, largest=False).indices
    distances = torch.linalg.vector_norm(h[:, None] - centroids[nearest], dim=2)
    return distances.amax(dim=1) - distances.amin(dim=1)


def mixture_margin(h: Tensor, mixture: GaussianMixture) -> Tensor:
    """l_(1) - l_(2) of h (B, d), l_j = log pi_j + log N(h; mu_j, Sigma_j) in nats: (B,), with gradient."""
    factors, constants = (torch.from_numpy(a.copy()).to(h) for a in mixture.whitening())
    x = h
    if mixture.pca_mean is not None and mixture.pca_components is not None:
        mean, components = (
            torch.from_numpy(a).to(h) for a in (mixture.pca_mean, mixture.pca_components)
        )
        x = (h - mean) @ components.t()
    away = x[:, None] - torch.from_numpy(mixture.means).to(h)
    y = away * factors if factors.ndim == 2 else torch.einsum("bkp,kpq->bkq", away, factors)
    best = (constants - 0.5 * y.square().sum(2)).topk(2, dim=1).values
    return best[:, 0] - best[:, 1]
