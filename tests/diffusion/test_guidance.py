"""Guidance against NumPy's scores, and its gradient against finite differences in float64."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor

from ssat_ray.config import GuidedRow, ModelConfig
from ssat_ray.diffusion.guidance import (
    ClassMargin,
    Guide,
    as_image,
    guided,
    margin_of,
    predicted_x0,
    timestep_weight,
)
from ssat_ray.models.base import EmbeddingClassifier
from ssat_ray.models.registry import build_classifier
from ssat_ray.selection.gmm import GaussianMixture, fit_gmm
from ssat_ray.selection.scores import gmm_margin, kmeans_margin, top_confidence, two_nearest

KINDS = ("pcg", "lcg-km", "lcg-gmm", "per-class")
PREDICTIONS = ("epsilon", "v_prediction", "sample")
RNG = np.random.default_rng(0)


def _classifier() -> EmbeddingClassifier:
    config = ModelConfig(name="preact-small", widths=(4, 8), strides=(1, 2), blocks=1)
    model = build_classifier(config, (1, 8, 8), 4, seed=0).double().eval()
    assert isinstance(model, EmbeddingClassifier)
    return model.requires_grad_(False)


def _mixture(covariance: str = "diag", pca_dims: int | None = None) -> GaussianMixture:
    rows = RNG.standard_normal((200, 8)).astype(np.float32)
    return fit_gmm(rows, 3, covariance=covariance, pca_dims=pca_dims, restarts=1)


def _guide(kind: str, scale: float = 1.0) -> Guide:
    clusters = {
        "pcg": None,
        "lcg-km": RNG.standard_normal((5, 8)).astype(np.float32),
        "lcg-gmm": _mixture(),
    }
    if kind == "per-class":
        centroids = torch.from_numpy(RNG.standard_normal((4, 3, 4)))
        return Guide("lcg-km", _classifier(), "pooled", ClassMargin(centroids), scale)
    found = clusters[kind]
    return Guide(
        cast(GuidedRow, kind),
        _classifier(),
        "pooled",
        None if found is None else margin_of(found),
        scale,
    )


def _images(count: int) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_the_true_output_gives_the_clean_image_back(kind: str) -> None:
    """Of diffusers' own noising, for every timestep that is not pure noise."""
    from diffusers import DDPMScheduler

    from ssat_ray.diffusion.noise import training_target

    scheduler = DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2", prediction_type=kind)
    x0 = _images(50) * 2 - 1
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(2)).double()
    timesteps = torch.arange(0, 1000, 20)
    noisy = scheduler.add_noise(x0, noise, timesteps)
    target = training_target(scheduler, x0, noise, timesteps)
    alpha_bar = scheduler.alphas_cumprod[timesteps].double()
    found = predicted_x0(kind, noisy, target, alpha_bar)
    torch.testing.assert_close(found, x0, rtol=0, atol=1e-4)  # the scheduler's own are float32
    with pytest.raises(ValueError, match="prediction_type 'score'"):
        predicted_x0("score", noisy, target, alpha_bar)


def test_margins_are_those_of_the_score_table() -> None:
    h = RNG.standard_normal((40, 8)).astype(np.float32)
    centroids = RNG.standard_normal((6, 8)).astype(np.float32)
    d1, d2, _ = two_nearest(h, centroids)
    found = margin_of(centroids)(torch.from_numpy(h))
    np.testing.assert_allclose(found, kmeans_margin(d1, d2), rtol=1e-4, atol=1e-5)
    for covariance, pca_dims in (("diag", None), ("tied", 3), ("full", None)):
        mixture = _mixture(covariance, pca_dims)
        expected = gmm_margin(mixture.log_joint(h))[3]
        found = margin_of(mixture)(torch.from_numpy(h).double())
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    images = _images(9)
    guide = _guide("pcg", scale=0.5)
    expected, _ = top_confidence(guide.classifier(images).detach().numpy())
    np.testing.assert_allclose(guide(images), 2 * expected, rtol=1e-9)


def test_a_class_has_centroids_of_its_own() -> None:
    """By hand; and without classes each image counts as what it looks like most."""
    centroids = torch.tensor(
        [[[0.0, 0.0], [3.0, 4.0], [9.0, 9.0]], [[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]]]
    )
    margin = ClassMargin(centroids)
    z = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    assert margin(z, torch.tensor([0, 1])).tolist() == [5.0, 0.0]
    guide, images = _guide("per-class", scale=0.5), _images(9)
    logits = guide.classifier(images)
    assert isinstance(guide.margin, ClassMargin)
    expected = 2 * guide.margin(logits, logits.argmax(1))
    torch.testing.assert_close(guide(images), expected)
    classes = (logits.argmax(1) + 1) % 4
    torch.testing.assert_close(guide(images, classes), 2 * guide.margin(logits, classes))
    assert not torch.allclose(guide(images, classes), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_gradient_by_the_output_is_the_finite_difference(kind: str, prediction: str) -> None:
    """In float64, where no pixel is clamped; and it is not zero."""
    guide = _guide(kind, scale=0.7)
    x_t = (_images(3) - 0.5) * 0.2
    alpha_bar = torch.tensor([0.9, 0.6, 0.3]).double()
    predicted = (_images(3).flip(0) - 0.5) * 0.2
    weights = timestep_weight("alpha-bar", alpha_bar)

    def loss(output: Tensor) -> Tensor:
        x0 = predicted_x0(prediction, x_t, output, alpha_bar)
        assert float(x0.detach().abs().max()) < 1
        return (weights * guide(as_image(x0))).mean()

    predicted.requires_grad_()
    assert torch.autograd.gradcheck(loss, predicted, eps=1e-6, atol=1e-7, rtol=1e-4)
    (gradient,) = torch.autograd.grad(loss(predicted), predicted)
    per_image = gradient.flatten(1).norm(dim=1)
    assert float(per_image.min()) > 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_down_the_gradient_lowers_the_score(kind: str) -> None:
    """The sign: confidence and margins fall, they are not raised."""
    guide, images = _guide(kind), _images(20).requires_grad_()
    before = guide(images)
    (gradient,) = torch.autograd.grad(before.sum(), images)
    after = guide(images - 1e-4 * gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1))
    assert bool((after < before).all())


def test_the_clamp_keeps_values_in_range_and_gradients_alive() -> None:
    x0 = torch.tensor([-3.0, -1.0, 0.0, 1.0, 2.0], requires_grad=True)
    image = as_image(x0)
    assert image.tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]
    image.sum().backward()
    assert x0.grad is not None and x0.grad.tolist() == [0.5] * 5


def test_weights_fall_with_the_noise() -> None:
    alpha_bar = torch.tensor([0.999, 0.9, 0.5, 0.1, 0.001])
    assert timestep_weight("uniform", alpha_bar).tolist() == [1.0] * 5
    assert torch.equal(timestep_weight("alpha-bar", alpha_bar), alpha_bar)
    assert timestep_weight("cut-off", alpha_bar, 0.5).tolist() == [1.0, 1.0, 1.0, 0.0, 0.0]
    expected = torch.tensor([1.0, 1.0, 0.2, 1 / 45, 1 / 4995])
    torch.testing.assert_close(timestep_weight("min-snr", alpha_bar), expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_without_any_signal_nothing_is_bent(kind: str) -> None:
    """As the first timestep of a schedule with rescale_betas_zero_snr."""
    x_t, none = _images(3), torch.zeros(3).double()
    bent = guided(_guide("lcg-km"), kind, x_t, lambda noisy: 0.5 * noisy, none, 3.0)
    assert torch.equal(bent, 0.5 * x_t)


def test_a_base_pool_without_a_margin_is_refused() -> None:
    with pytest.raises(ValueError, match=r"lcg-km: the base pool's median score .* found 0"):
        _guide("lcg-km", scale=0.0)


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_guided_outputs_stand_for_the_image_down_the_gradient(kind: str) -> None:
    """For x0_hat = g x_t and the score c . x0_hat, worked out by hand: x0 falls by (1 - abar) / sqrt(abar) w c g / 2."""
    alpha_bar, gain, weight = torch.tensor([0.1, 0.6, 0.95]).double(), 0.7, 3.0
    x_t = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    c = torch.linspace(-1, 2, 64).double()
    a, b = (v.sqrt().view(-1, 1, 1, 1) for v in (alpha_bar, 1 - alpha_bar))

    def predict(noisy: Tensor) -> Tensor:
        x0 = gain * noisy
        eps = (noisy - a * x0) / b
        return {"epsilon": eps, "v_prediction": a * eps - b * x0, "sample": x0}[kind]

    def guide(images: Tensor, classes: None) -> Tensor:
        return (images.flatten(1) * c).sum(1)

    bent = guided(guide, kind, x_t, predict, alpha_bar, weight)  # type: ignore[arg-type]
    found = predicted_x0(kind, x_t, bent, alpha_bar)
    weights = timestep_weight("min-snr", alpha_bar).view(-1, 1, 1, 1)
    expected = gain * x_t - b.square() / a * weight * weights * gain * c.view(1, 1, 8, 8) / 2
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
