"""Batches: shares of real and pool images, slices by rank, labels, denominators, noise."""

import pytest
import torch
from torch import Tensor

from ssat_ray.config import IntermediateConfig, TrainConfig
from ssat_ray.training.feed import Feed
from ssat_ray.training.sources import Images
from ssat_ray.training.world import World


def _levels(start: int, count: int, labels: Tensor | None = None) -> Images:
    """Every image is one grey level that tells which one it is."""
    images = torch.arange(start, start + count, dtype=torch.uint8)[:, None, None, None]
    images = images.expand(count, 2, 4, 4)
    return images, torch.arange(count) + 10 * start if labels is None else labels


REAL, POOL = _levels(0, 30), _levels(100, 50)


def _config(**changes: object) -> TrainConfig:
    options = {"batch_size": 20, "bn_group": 5, "unsup_fraction": 0.7, "augment_shift": 0}
    return TrainConfig(**{**options, **changes})


def _feed(
    config: TrainConfig | IntermediateConfig,
    pool: Images | None = POOL,
    seed: int = 0,
    world: World | None = None,
    pool_weight: float = 1.0,
) -> Feed:
    world = world or World()
    return Feed(REAL, pool, config, seed, world, torch.device("cpu"), pool_weight)


def _level(x: Tensor) -> Tensor:
    """(B,) the grey levels of float images that are flat."""
    levels = (x * 255).round().long()
    assert bool((levels == levels[:, :1, :1, :1]).all())
    return levels[:, 0, 0, 0]


def test_a_batch_mixes_real_and_pool_images_in_the_asked_shares() -> None:
    feed, seen = _feed(_config()), []
    for step in range(5):
        batch = feed.batch(step)
        assert batch.x.dtype == torch.float32 and batch.x.shape == (20, 2, 4, 4)
        assert batch.x.is_contiguous(memory_format=torch.channels_last)
        level = _level(batch.x)
        assert int((level < 30).sum()) == 6 and int((level >= 100).sum()) == 14
        assert torch.equal(batch.y, torch.where(level < 30, level, level - 100 + 1000))
        seen += level[level < 30].tolist()
    assert sorted(seen) == list(range(30)), "five batches of 6 are one epoch of the real images"


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("shift", [0, 2])
def test_the_ranks_parts_make_the_batch_in_whole_groups(size: int, shift: int) -> None:
    config = _config(augment_shift=shift)
    whole = _feed(config).batch(3)
    parts = [_feed(config, world=World(rank, size)).batch(3) for rank in range(size)]
    assert torch.equal(torch.cat([p.x for p in parts]), whole.x)
    assert torch.equal(torch.cat([p.y for p in parts]), whole.y)
    assert all(len(p.x) % 5 == 0 and p.of == whole.of for p in parts)
    noises = [_feed(config, world=World(rank, size)).noise("normal", 3) for rank in range(size)]
    assert torch.equal(torch.cat(noises), _feed(config).noise("normal", 3))


def test_the_memory_format_of_images_and_noise() -> None:
    images = torch.zeros(8, 2, 4, 4, dtype=torch.uint8), torch.zeros(8, dtype=torch.int64)
    for fmt, other in (
        (torch.channels_last, torch.contiguous_format),
        (torch.contiguous_format, torch.channels_last),
    ):
        device = torch.device("cpu")
        feed = Feed(images, None, _config(), 0, World(), device, memory_format=fmt)
        for found in (feed.batch(0).x, feed.noise("normal", 0)):
            assert found.is_contiguous(memory_format=fmt)
            assert not found.is_contiguous(memory_format=other)


def test_denominators_are_of_the_whole_batch() -> None:
    pool = POOL[0], torch.full((50,), -1)
    for rank in range(2):
        batch = _feed(_config(), pool, world=World(rank, 2)).batch(1)
        assert [float(v) for v in batch.of] == [6.0, 20.0]
        assert int((batch.y >= 0).sum()) < 6
    assert _feed(_config(), pool).lacks_labels and not _feed(_config()).lacks_labels
    assert not _feed(_config(unsup_fraction=0.0), pool).lacks_labels


def test_without_a_pool_or_for_the_intermediate_model_all_rows_are_real() -> None:
    clean = IntermediateConfig(batch_size=20, bn_group=5, augment_shift=0)
    for feed in (_feed(clean), _feed(_config(), None), _feed(_config(unsup_fraction=0.0))):
        assert int(_level(feed.batch(0).x).max()) < 30


def test_draws_are_functions_of_seed_and_step() -> None:
    def draw(seed: int, step: int) -> list[Tensor]:
        feed = _feed(_config(), seed=seed)
        feed.batch(9)  # what was drawn before must not matter
        return [feed.batch(step).x, feed.noise("normal", step)]

    assert all(map(torch.equal, draw(0, 3), draw(0, 3)))
    for other in (draw(1, 3), draw(0, 4)):
        assert not any(map(torch.equal, draw(0, 3), other))


def test_noise_is_normal_or_uniform() -> None:
    feed = _feed(_config(batch_size=200))
    normal, uniform = feed.noise("normal", 0), feed.noise("uniform", 0)
    assert normal.is_contiguous(memory_format=torch.channels_last)
    assert abs(float(normal.mean())) < 0.06 and float(normal.std()) == pytest.approx(1, abs=0.05)
    assert -1 <= float(uniform.min()) < -0.99 and 0.99 < float(uniform.max()) <= 1


def test_rows_of_the_pool_weigh_more_or_less() -> None:
    pool = POOL[0], torch.where(torch.arange(50) < 25, torch.arange(50), -1)
    for rank in range(2):
        batch = _feed(_config(), pool, world=World(rank, 2), pool_weight=0.25).batch(1)
        assert batch.weights is not None and 1 < int((batch.weights == 1).sum()) < 5
        assert torch.equal(batch.weights, torch.where(_level(batch.x) < 30, 1.0, 0.25))
        whole = _feed(_config(), pool, pool_weight=0.25).batch(1)
        from_pool = int((whole.y >= 0).sum()) - 6
        assert [float(v) for v in batch.of] == [6 + 0.25 * from_pool, 6 + 0.25 * 14]
        part = batch.rows(slice(5, 10))
        assert part.weights is not None and torch.equal(part.weights, batch.weights[5:10])
        assert part.of == batch.of and part.first == batch.first + 5
    assert _feed(_config()).batch(0).weights is None
    assert _feed(_config(), None, pool_weight=2.0).batch(0).weights is None
