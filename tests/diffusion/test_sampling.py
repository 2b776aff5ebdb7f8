"""Samplers with U-Nets that know the answer: a point mass and a Gaussian; noise as a function of the id."""

import functools
import tempfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from ssat_ray.config import GenerateConfig, PretrainConfig
from ssat_ray.diffusion.noise import build_scheduler
from ssat_ray.diffusion.sampling import (
    balanced_labels,
    build_solver,
    initial_noise,
    sample,
    step_generators,
)
from ssat_ray.errors import UserError
from ssat_ray.models.unet import build_unet

SHAPE = (1, 4, 4)
SAMPLERS = ("ddim", "dpmsolver++", "ancestral")
KINDS = ("epsilon", "v_prediction")


@functools.cache
def _schedule(kind: str) -> DDPMScheduler:
    """As an actor has it: saved and read again, which states every default."""
    with tempfile.TemporaryDirectory() as folder:
        build_scheduler(PretrainConfig(prediction_type=kind)).save_pretrained(folder)
        return DDPMScheduler.from_pretrained(folder)


class Oracle(nn.Module):
    """The optimal prediction for x0 ~ N(mean[class], std^2): std 0 is a point mass."""

    def __init__(self, scheduler, means: Tensor, std: float) -> None:
        super().__init__()
        self.kind, self.abar = scheduler.config["prediction_type"], scheduler.alphas_cumprod
        self.means, self.std, self.labels = means, std, []

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor) -> SimpleNamespace:
        self.labels.append(class_labels)
        abar, mean = self.abar[int(t)].double(), self.means[class_labels].double()
        gain = abar.sqrt() * self.std**2 / (abar * self.std**2 + 1 - abar)
        x0_hat = mean + gain * (x.double() - abar.sqrt() * mean)
        eps_hat = (x.double() - abar.sqrt() * x0_hat) / (1 - abar).sqrt()
        v_hat = abar.sqrt() * eps_hat - (1 - abar).sqrt() * x0_hat
        return SimpleNamespace(sample=(eps_hat if self.kind == "epsilon" else v_hat).float())


def _config(sampler: str, steps: int = 20) -> GenerateConfig:
    return GenerateConfig(sampler=sampler, num_inference_steps=steps)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_point_mass_is_returned_to_the_grey_level(sampler: str, kind: str) -> None:
    scheduler = _schedule(kind)
    levels = torch.randint(0, 256, (3, *SHAPE), generator=torch.Generator().manual_seed(0))
    ids = np.arange(7)
    labels = torch.from_numpy(balanced_labels(ids, 3))
    unet = Oracle(scheduler, levels / 127.5 - 1, 0.0)
    noise, config = initial_noise(ids, SHAPE, 0), _config(sampler)
    steps = step_generators(ids, 0, config)
    found = sample(unet, scheduler, noise, labels, config, generators=steps)
    assert found.dtype == torch.uint8 and found.shape == (7, *SHAPE)
    assert int((found.int() - levels[labels].int()).abs().max()) <= 1
    assert len(unet.labels) == 20 and all(torch.equal(seen, labels) for seen in unet.labels)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_gaussian_comes_back_with_its_mean_and_spread(sampler: str, kind: str) -> None:
    scheduler = _schedule(kind)
    means = torch.tensor([-0.3, 0.25])[:, None, None, None].expand(2, *SHAPE)
    labels = torch.arange(600) % 2
    noise = initial_noise(np.arange(600), SHAPE, 1)
    unet = Oracle(scheduler, means, 0.15)
    config = _config(sampler, 1000 if sampler == "ancestral" else 50)
    steps = step_generators(np.arange(600), 1, config)
    images = sample(unet, scheduler, noise, labels, config, generators=steps).double() / 127.5 - 1
    for label, mean in enumerate((-0.3, 0.25)):
        part = images[labels == label]
        assert float(part.mean()) == pytest.approx(mean, abs=0.015)
        # 50 first-order steps shrink the spread by 8 % (the recursion is linear: worked out by hand)
        assert float(part.std()) == pytest.approx(0.15, rel=0.12 if sampler == "ddim" else 0.06)


class Inexact(Oracle):
    """Off by 1 % of the noise, another part of it at every timestep, as a trained U-Net is at best."""

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor) -> SimpleNamespace:
        drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(int(t)))
        return SimpleNamespace(sample=super().forward(x, t, class_labels).sample + 0.01 * drawn)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_inexact_model_still_makes_the_image(sampler: str, kind: str) -> None:
    """On the cosine schedule, whose first timestep has a signal of 1 / 20,000."""
    levels = torch.randint(0, 256, (3, *SHAPE), generator=torch.Generator().manual_seed(0))
    unet = Inexact(_schedule(kind), levels / 127.5 - 1, 0.0)
    ids = np.arange(60)
    labels = torch.from_numpy(balanced_labels(ids, 3))
    config = _config(sampler)
    steps = step_generators(ids, 0, config)
    noise = initial_noise(ids, SHAPE, 0)
    found = sample(unet, _schedule(kind), noise, labels, config, generators=steps)
    off = (found.int() - levels[labels].int()).abs().float()
    assert off.mean() < 3 and off.max() < 20


def test_images_that_are_not_finite_are_never_returned() -> None:
    class Broken(Oracle):
        def forward(self, x: Tensor, t: Tensor, class_labels: Tensor) -> SimpleNamespace:
            found = super().forward(x, t, class_labels).sample
            found[1, 0, 2, 2] = torch.nan
            return SimpleNamespace(sample=found)

    unet = Broken(_schedule("v_prediction"), torch.zeros(3, *SHAPE), 0.0)
    noise = initial_noise(np.arange(3), SHAPE, 0)
    with pytest.raises(UserError, match=r"not finite; lower the guidance"):
        sample(unet, _schedule("v_prediction"), noise, torch.arange(3), _config("ddim"))


def test_values_beyond_the_range_are_clamped_not_wrapped() -> None:
    scheduler = _schedule("epsilon")
    means = torch.tensor([-1.6, 1.6])[:, None, None, None].expand(2, *SHAPE)
    found = sample(
        Oracle(scheduler, means, 0.0),
        scheduler,
        initial_noise(np.arange(2), SHAPE, 0),
        torch.arange(2),
        _config("ddim"),
    )
    assert found[0].unique().tolist() == [0] and found[1].unique().tolist() == [255]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_images_do_not_depend_on_the_batch_they_are_made_in(sampler: str) -> None:
    config = PretrainConfig(channels=(8, 16), norm_num_groups=2)
    unet, scheduler = build_unet(config, (1, 8, 8), 3, 0).eval(), build_scheduler(config)

    def make(ids: np.ndarray) -> Tensor:
        labels = torch.from_numpy(balanced_labels(ids, 3))
        noise = initial_noise(ids, (1, 8, 8), 5)
        drawn = _config(sampler, 5)
        steps = step_generators(ids, 5, drawn)
        return sample(unet, scheduler, noise, labels, drawn, generators=steps)

    ids = np.arange(11, 20)
    whole = make(ids)
    assert len(torch.unique(whole, dim=0)) == len(ids)
    order = np.random.default_rng(0).permutation(9)
    assert torch.equal(make(ids[order]), whole[order])
    assert torch.equal(torch.cat([make(ids[:4]), make(ids[4:])]), whole)
    assert torch.equal(torch.cat([make(ids[i : i + 1]) for i in range(9)]), whole)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("num_steps", [20, 100, 1000])
def test_sampling_begins_where_all_is_noise(sampler: str, num_steps: int) -> None:
    """The start is pure noise whatever the number of steps, and every step is another timestep."""
    timesteps = build_solver(_schedule("v_prediction"), sampler, num_steps).timesteps.tolist()
    assert timesteps[0] == 999 and timesteps == sorted(set(timesteps), reverse=True)
    assert len(timesteps) == num_steps and timesteps[-1] < 2 * 1000 / num_steps


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("kind", KINDS)
def test_guidance_lowers_the_score_and_blows_nothing_up(sampler: str, kind: str) -> None:
    """Of a Gaussian and the sum of its pixels: the mean falls, the spread stays."""
    scheduler, labels = _schedule(kind), torch.zeros(400, dtype=torch.int64)
    unet = Oracle(scheduler, torch.zeros(1, *SHAPE), 0.2)
    noise, found = initial_noise(np.arange(400), SHAPE, 2), []
    for weight in (0.0, 1.0, 2.0):
        config = _config(sampler).model_copy(update={"guidance": weight})
        images = sample(
            unet,
            scheduler,
            noise,
            labels,
            config,
            lambda images, classes: 4 * images.flatten(1).sum(1),  # type: ignore[arg-type]
            step_generators(np.arange(400), 2, config),
        )
        found.append(images.double() / 127.5 - 1)
    means, stds = [float(x.mean()) for x in found], [float(x.std()) for x in found]
    assert means[0] == pytest.approx(0, abs=0.02)
    # tilted by exp(-weight * 4 * (x + 1) / 2), a Gaussian's mean falls by weight * 2 * std^2 at most
    assert 0.3 * 2 * 0.04 < means[0] - means[1] < 1.3 * 2 * 0.04
    assert 0.3 * 4 * 0.04 < means[0] - means[2] < 1.3 * 4 * 0.04
    assert max(stds) / min(stds) < 1.2


def test_noise_is_a_function_of_seed_and_id() -> None:
    ids = np.array([3, 10**12, 0, 7])
    whole = initial_noise(ids, (3, 4, 5), seed=2)
    assert whole.shape == (4, 3, 4, 5) and whole.dtype == torch.float32
    for i, noise in zip(ids, whole, strict=True):
        assert torch.equal(initial_noise(np.array([i]), (3, 4, 5), seed=2)[0], noise)
    assert not torch.equal(initial_noise(ids, (3, 4, 5), seed=3), whole)
    swapped = initial_noise(np.array([2]), (3, 4, 5), seed=3)[0]
    assert not torch.equal(swapped, initial_noise(np.array([3]), (3, 4, 5), seed=2)[0])


def test_noise_is_standard_normal_and_independent_between_ids() -> None:
    noise = initial_noise(np.arange(100), (1, 20, 20), 0).flatten(1).double()
    assert abs(float(noise.mean())) < 4 / 200  # 40,000 draws
    assert float(noise.var()) == pytest.approx(1, abs=4 * (2 / 40_000) ** 0.5)
    assert float((noise**4).mean()) == pytest.approx(3, abs=0.25)
    between = torch.corrcoef(noise)[~torch.eye(100, dtype=torch.bool)]
    assert float(between.abs().max()) < 6 / 20


def test_labels_are_balanced_by_construction() -> None:
    ids = np.arange(5, 5 + 40)
    labels = balanced_labels(ids, 10)
    assert np.bincount(labels).tolist() == [4] * 10
    np.testing.assert_array_equal(balanced_labels(ids[7:9], 10), labels[7:9])
