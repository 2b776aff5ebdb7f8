"""Guidance of a DDPM's fine-tuning: how near the decision boundary the image it predicts is, with gradient.

The image is the closed-form prediction of x0 from one U-Net output, for a whole batch at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssat_ray.config import FinetuneConfig, GuidedRow, TimestepWeight
from ssat_ray.selection.clusters import Clusters
from ssat_ray.selection.gmm import GaussianMixture

if TYPE_CHECKING:
    from diffusers import DDPMScheduler, UNet2DModel


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


class CentroidMargin(nn.Module):
    """h (B, d) -> (B,) d_(2) - d_(1), Euclidean to the centroids (k, d), with gradient."""

    centroids: Tensor

    def __init__(self, centroids: Tensor) -> None:
        super().__init__()
        self.register_buffer("centroids", centroids)

    def forward(self, h: Tensor) -> Tensor:
        centroids = self.centroids.to(h)
        with torch.no_grad():
            halves = 0.5 * centroids.square().sum(1) - h @ centroids.t()
            nearest = halves.topk(2, dim=1, largest=False).indices
        distances = torch.linalg.vector_norm(h[:, None] - centroids[nearest], dim=2)
        return distances.amax(dim=1) - distances.amin(dim=1)


class ClassMargin(nn.Module):
    """z (B, K), classes (B,) -> (B,) d_(2) - d_(1) to the centroids (K, k, K) of each row's own class."""

    centroids: Tensor

    def __init__(self, centroids: Tensor) -> None:
        super().__init__()
        self.register_buffer("centroids", centroids)

    def forward(self, z: Tensor, classes: Tensor) -> Tensor:
        distances = torch.linalg.vector_norm(z[:, None] - self.centroids[classes].to(z), dim=2)
        two = distances.topk(2, dim=1, largest=False).values
        return two[:, 1] - two[:, 0]


class MixtureMargin(nn.Module):
    """h (B, d) -> (B,) l_(1) - l_(2), l_j = log pi_j + log N(h; mu_j, Sigma_j) in nats, with gradient."""

    factors: Tensor
    constants: Tensor
    means: Tensor
    pca_mean: Tensor | None
    pca_components: Tensor | None

    def __init__(self, mixture: GaussianMixture) -> None:
        super().__init__()
        factors, constants = mixture.whitening()
        for name, values in (
            ("factors", factors),
            ("constants", constants),
            ("means", mixture.means),
            ("pca_mean", mixture.pca_mean),
            ("pca_components", mixture.pca_components),
        ):
            self.register_buffer(name, None if values is None else torch.from_numpy(values.copy()))

    def forward(self, h: Tensor) -> Tensor:
        x = h
        if self.pca_mean is not None and self.pca_components is not None:
            x = (h - self.pca_mean.to(h)) @ self.pca_components.to(h).t()
        factors = self.factors.to(h)
        away = x[:, None] - self.means.to(h)
        y = away * factors if factors.ndim == 2 else torch.einsum("bkp,kpq->bkq", away, factors)
        best = (self.constants.to(h) - 0.5 * y.square().sum(2)).topk(2, dim=1).values
        return best[:, 0] - best[:, 1]


def margin_of(clusters: Clusters) -> CentroidMargin | MixtureMargin:
    """The margin of embeddings to centroids (k, d) or to a mixture's components."""
    if isinstance(clusters, GaussianMixture):
        return MixtureMargin(clusters)
    return CentroidMargin(torch.from_numpy(clusters))


@dataclass(frozen=True)
class Guide:
    """What fine-tuning lowers: a frozen classifier's score of an image, in units of the base pool's median.

    Args:
        kind: pcg: the highest softmax probability. lcg-km: distance to the second nearest centroid less that
            to the nearest. lcg-gmm: largest log-joint density less the second largest, in nats.
        classifier: has `embed_with_logits(x, layer)`; frozen, in eval mode.
        layer: of the embedding that the clusters are of.
        margin: of embeddings, or of logits where each class has its own centroids; None for pcg.
        scale: the base pool's median score, above 0.
    """

    kind: GuidedRow
    classifier: Any
    layer: str
    margin: CentroidMargin | ClassMargin | MixtureMargin | None
    scale: float

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(
                f"{self.kind}: the base pool's median score must be above 0, found {self.scale}"
            )

    def to(self, device: torch.device) -> Guide:
        """This guide, its classifier and clusters on the device."""
        self.classifier.to(device)
        if self.margin is not None:
            self.margin.to(device)
        return self

    def __call__(self, images: Tensor, classes: Tensor | None = None) -> Tensor:
        """(B,) scores of images (B, C, H, W) in [0, 1]; lower is nearer the boundary.

        Args:
            classes: (B,) of the images, for centroids by class; the most probable ones if None.
        """
        h, logits = self.classifier.embed_with_logits(images, self.layer)
        score: Tensor
        if self.margin is None:
            score = logits.softmax(dim=1).amax(dim=1)
        elif isinstance(self.margin, ClassMargin):
            score = self.margin(logits, logits.argmax(dim=1) if classes is None else classes)
        else:
            score = self.margin(h)
        return score / self.scale


def guided(
    guide: Guide,
    kind: str,
    x_t: Tensor,
    predict: Callable[[Tensor], Tensor],
    alpha_bar: Tensor,
    weight: float,
    classes: Tensor | None = None,
) -> Tensor:
    """The U-Net's output for x_t (B, C, H, W), bent so that sampling goes down the guide's score.

    The density that is sampled at a level of noise is multiplied by exp(-weight * w * score of the predicted
    image), w the `min-snr` weight of the level: where nearly all is noise the predicted image is a guess, and
    a shift of the output would become one of 1 / sqrt(alpha_bar) of the image.

    Args:
        kind: the scheduler's `prediction_type`.
        predict: noisy images -> the U-Net's output.
        alpha_bar: (B,). classes: (B,) of the images, where they are conditioned on one.

    Source: Dhariwal and Nichol 2021, algorithm 2, the score in place of a classifier's log-likelihood.
    """
    with torch.enable_grad():
        noisy = x_t.detach().requires_grad_(True)
        predicted = predict(noisy)
        score = guide(as_image(predicted_x0(kind, noisy, predicted, alpha_bar)), classes).sum()
        (gradient,) = torch.autograd.grad(score, noisy)
    signal = alpha_bar.sqrt().view(-1, 1, 1, 1)
    noise = (1 - alpha_bar).sqrt().view(-1, 1, 1, 1)
    weights = weight * timestep_weight("min-snr", alpha_bar).view(-1, 1, 1, 1)
    more_noise = weights * noise * gradient  # what epsilon rises by; x_t stays
    predicted = predicted.detach()
    if kind == "epsilon":
        return predicted + more_noise
    bend = torch.where(weights > 0, more_noise / signal, 0)  # without any signal there is no weight
    return predicted + bend if kind == "v_prediction" else predicted - noise * bend


@dataclass(frozen=True)
class Regulariser:
    """What guided fine-tuning adds to L_DDPM.

    Args:
        guide: scores the predicted images.
        base: the model that is fine-tuned, as it was, frozen; None without an anchor to it.
    """

    guide: Guide
    base: UNet2DModel | None
    config: FinetuneConfig

    def weight(self, step: int) -> float:
        """Lambda at a step, from 0: rises linearly over the first `weight_warmup_steps`."""
        rising = (
            (step + 1) / self.config.weight_warmup_steps if self.config.weight_warmup_steps else 1
        )
        return self.config.weight * min(1.0, rising)

    def __call__(
        self,
        scheduler: DDPMScheduler,
        noisy: Tensor,
        timesteps: Tensor,
        labels: Tensor | None,
        predicted: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Means over a batch (B, C, H, W) of the weighted scores and of the squared distance to the base
        model's output, with gradient; guidance of weight 0, and an anchor without a base, is 0 and costs nothing.

        Args:
            predicted: the fine-tuned model's output for the `noisy` images.
        """
        guidance = anchor = predicted.new_zeros(())
        if self.config.weight:
            alpha_bar = scheduler.alphas_cumprod.to(predicted)[timesteps]
            kind = scheduler.config["prediction_type"]
            scores = self.guide(as_image(predicted_x0(kind, noisy, predicted, alpha_bar)), labels)
            weights = timestep_weight(self.config.timestep_weight, alpha_bar, self.config.cut_off)
            guidance = (weights * scores).mean()
        if self.base is not None:
            bf16, device = self.config.precision == "bf16", noisy.device.type
            with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=bf16):
                before = self.base(noisy, timesteps, class_labels=labels).sample
            anchor = F.mse_loss(predicted, before.to(predicted))
        return guidance, anchor
