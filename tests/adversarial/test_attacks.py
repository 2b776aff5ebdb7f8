"""PGD against a closed form and a float64 loop; freezing; starting points."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssat_ray.adversarial.attacks import frozen, gaussian_start, pgd, random_start


def _images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_linear_model_reaches_the_closed_form_minimum_of_the_margin() -> None:
    x = _images(6, 1, 3, 3)
    x[0, 0, 0, 0], x[1, 0, 0, 0] = 0.0, 1.0
    weight = torch.linspace(-1, 1, 9).roll(4) + 0.01

    def model(images: Tensor) -> Tensor:
        return images.flatten(1) @ torch.stack([weight, -weight], dim=1)

    y = torch.tensor([0, 1, 0, 1, 0, 1])
    eps = 0.1
    x_adv = pgd(
        model,
        x,
        lambda z: F.cross_entropy(z, y, reduction="sum"),
        eps=eps,
        step_size=0.04,
        num_steps=6,
        start=x,
    )
    away = torch.where(y == 0, -1.0, 1.0).view(-1, 1, 1, 1) * weight.sign().view(1, 1, 3, 3)
    assert torch.allclose(x_adv, (x + eps * away).clamp(0, 1), atol=1e-6)


def test_linear_model_reaches_the_closed_form_in_the_l2_ball() -> None:
    """Off the borders of [0, 1]: the point at distance eps along the gradient, for any images."""
    x = 0.4 + 0.2 * _images(6, 1, 3, 3)
    weight = torch.linspace(-1, 1, 9).roll(4) + 0.01
    eps = 0.3
    for scale in (1.0, 1e-25):  # squares of such gradients are 0 in float32
        x_adv = pgd(
            lambda images, scale=scale: scale * images.flatten(1) @ weight[:, None],
            x,
            Tensor.sum,
            eps=eps,
            step_size=0.1,
            num_steps=60,
            start=random_start(x, torch.randn(x.shape), eps, "l2"),
            norm="l2",
        )
        expected = x + eps * (weight / weight.norm()).view(1, 1, 3, 3)
        torch.testing.assert_close(x_adv, expected, atol=1e-5, rtol=0)


def test_l2_iterates_equal_a_float64_loop() -> None:
    rng = np.random.default_rng(2)
    first, second = rng.normal(size=(12, 7)), 3 * rng.normal(size=(7, 4))
    x, y = rng.random((5, 12)), rng.integers(0, 4, 5)
    start = x + 0.3 * rng.normal(size=x.shape)
    eps, step_size = 0.4, 0.15

    def projected(adv: np.ndarray) -> np.ndarray:
        length = np.sqrt(((adv - x) ** 2).sum(1, keepdims=True))
        return np.clip(x + (adv - x) * np.minimum(1, eps / length), 0, 1)

    adv = projected(start)
    for _ in range(7):
        gradient = _gradient((first, second), adv, y)
        length = np.sqrt((gradient**2).sum(1, keepdims=True))
        adv = projected(adv + step_size * gradient / length)
    a, b = torch.tensor(first).float(), torch.tensor(second).float()
    images = torch.tensor(x).float().view(5, 3, 2, 2).to(memory_format=torch.channels_last)
    found = pgd(
        lambda z: torch.tanh(z.flatten(1) @ a) @ b,
        images,
        lambda z: F.cross_entropy(z, torch.tensor(y), reduction="sum"),
        eps=eps,
        step_size=step_size,
        num_steps=7,
        start=torch.tensor(start).float().view(5, 3, 2, 2),
        norm="l2",
    )
    np.testing.assert_allclose(found.flatten(1).numpy(), adv, atol=5e-6)
    assert found.is_contiguous(memory_format=torch.channels_last)
    length = np.sqrt(((adv - x) ** 2).sum(1))
    assert (length > 0.3).any() and (adv == 0).any() and (adv == 1).any()


def _gradient(weights: tuple[np.ndarray, np.ndarray], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of the cross-entropy of z = tanh(x A) B with respect to x, by hand in float64."""
    first, second = weights
    hidden = np.tanh(x @ first)
    logits = hidden @ second
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    return ((p @ second.T) * (1 - hidden**2)) @ first.T


def test_an_image_without_gradient_stays_in_the_l2_ball() -> None:
    x = _images(3, 1, 2, 2)
    x_adv = pgd(
        lambda z: 0 * z.flatten(1),
        x,
        Tensor.sum,
        eps=1,
        step_size=1,
        num_steps=2,
        start=x,
        norm="l2",
    )
    assert torch.equal(x_adv, x)


def _numpy_pgd(
    weights: tuple[np.ndarray, np.ndarray],
    x: np.ndarray,
    y: np.ndarray,
    start: np.ndarray,
    eps: float,
    step_size: float,
    num_steps: int,
) -> list[np.ndarray]:
    """Float64 iterates of PGD-CE on z = tanh(x A) B."""
    iterates, adv = [], np.clip(np.clip(start, x - eps, x + eps), 0, 1)
    for _ in range(num_steps):
        gradient = _gradient(weights, adv, y)
        adv = np.clip(np.clip(adv + step_size * np.sign(gradient), x - eps, x + eps), 0, 1)
        iterates.append(adv)
    return iterates


def test_iterates_equal_a_float64_loop() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(12, 7)), 3 * rng.normal(size=(7, 4))
    x, y = rng.random((5, 12)), rng.integers(0, 4, 5)
    start = x + 0.3 * rng.normal(size=x.shape)
    eps, step_size, num_steps = 0.2, 0.07, 7
    expected = _numpy_pgd((first, second), x, y, start, eps, step_size, num_steps)
    a, b = torch.tensor(first).float(), torch.tensor(second).float()
    for steps in (1, 3, num_steps):
        found = pgd(
            lambda images: torch.tanh(images.flatten(1) @ a) @ b,
            torch.tensor(x).float().view(5, 3, 2, 2),
            lambda z: F.cross_entropy(z, torch.tensor(y), reduction="sum"),
            eps=eps,
            step_size=step_size,
            num_steps=steps,
            start=torch.tensor(start).float().view(5, 3, 2, 2),
        )
        np.testing.assert_allclose(found.flatten(1).numpy(), expected[steps - 1], atol=2e-6)
    assert all(np.abs(u - v).max() > 1e-3 for u, v in pairwise(expected[:3]))


def test_no_steps_projects_the_start_on_ball_and_range() -> None:
    x = torch.tensor([0.0, 0.5, 1.0, 0.5]).view(1, 1, 2, 2)
    start = torch.tensor([-1.0, 0.9, 2.0, 0.45]).view(1, 1, 2, 2)
    x_adv = pgd(
        lambda z: z.flatten(1), x, Tensor.sum, eps=0.1, step_size=1.0, num_steps=0, start=start
    )
    assert torch.allclose(x_adv, torch.tensor([0.0, 0.6, 1.0, 0.45]).view(1, 1, 2, 2))


def test_keeps_channels_last_and_leaves_inputs_alone() -> None:
    x = _images(2, 3, 4, 5).to(memory_format=torch.channels_last)
    start = random_start(x, 2 * _images(2, 3, 4, 5, seed=1) - 1, 0.1).contiguous()
    before = x.clone(), start.clone()
    with torch.no_grad():
        x_adv = pgd(
            lambda z: z.flatten(1), x, Tensor.sum, eps=0.1, step_size=0.1, num_steps=2, start=start
        )
    assert x_adv.is_contiguous(memory_format=torch.channels_last) and not x_adv.is_contiguous()
    assert not x_adv.requires_grad
    assert torch.equal(x, before[0]) and torch.equal(start, before[1])


def test_nan_gradient_does_not_move_its_pixel() -> None:
    x = torch.tensor([0.0, 0.5, 0.25, 0.75]).view(1, 1, 2, 2)

    def model(images: Tensor) -> Tensor:
        flat = images.flatten(1)
        return flat + 0.0 * flat.sqrt()  # 0 * inf at the zero pixel

    x_adv = pgd(model, x, Tensor.sum, eps=0.1, step_size=0.1, num_steps=1, start=x)
    assert torch.allclose(x_adv.flatten(), torch.tensor([0.0, 0.6, 0.35, 0.85]))


def test_autocast_covers_the_model_and_the_loss_sees_float32() -> None:
    layer = nn.Linear(4, 3)
    model_dtypes, loss_dtypes = [], []

    def model(images: Tensor) -> Tensor:
        logits: Tensor = layer(images.flatten(1))
        model_dtypes.append(logits.dtype)
        return logits

    def loss(logits: Tensor) -> Tensor:
        loss_dtypes.append(logits.dtype)
        return (logits @ torch.ones(3, 1)).sum()

    x = _images(2, 1, 2, 2)
    pgd(
        model,
        x,
        loss,
        eps=0.1,
        step_size=0.1,
        num_steps=2,
        start=x,
        autocast=lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    )
    assert model_dtypes == [torch.bfloat16] * 2
    assert loss_dtypes == [torch.float32] * 2


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"eps": -0.1}, "eps"),
        ({"step_size": -1.0}, "step_size"),
        ({"num_steps": -1}, "num_steps"),
        ({"start": torch.zeros(1, 1, 2, 3)}, "start"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, object], word: str) -> None:
    x = torch.zeros(1, 1, 2, 2)
    arguments = {"eps": 0.1, "step_size": 0.1, "num_steps": 1, "start": x} | change
    with pytest.raises(ValueError, match=word):
        pgd(lambda z: z.flatten(1), x, Tensor.sum, **arguments)  # type: ignore[arg-type]


def test_frozen_restores_every_flag_also_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(), nn.Linear(3, 2))
    model.train()
    model[1].eval()
    model[0].bias.requires_grad_(False)
    training = [module.training for module in model.modules()]
    gradients = [parameter.requires_grad for parameter in model.parameters()]
    with pytest.raises(KeyError), frozen(model) as inside:
        assert inside is model
        assert not any(module.training for module in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())
        raise KeyError
    assert [module.training for module in model.modules()] == training
    assert [parameter.requires_grad for parameter in model.parameters()] == gradients


def test_starts() -> None:
    x = torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 1, 3)
    noise = torch.tensor([-1.0, 0.5, -1.0]).view(1, 1, 1, 3)
    assert torch.allclose(random_start(x, noise, 0.1).flatten(), torch.tensor([0.0, 0.55, 0.9]))
    length = (random_start(x, noise, 0.1, "l2") - x).flatten()
    assert torch.allclose(length, torch.tensor([0.0, 0.5, -1.0]) * 0.1 / 1.5, atol=1e-7)
    found = gaussian_start(x, noise).flatten()
    assert torch.allclose(found, torch.tensor([0.0, 0.5005, 0.999]), atol=1e-7)
