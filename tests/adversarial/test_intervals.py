"""Intervals against the normal approximation, a plain bootstrap loop, and their coverage."""

import numpy as np
import pytest

from ssat_ray.adversarial.intervals import bootstrap_interval, paired_difference


def _flags(shape: tuple[int, int], p: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) < p


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_one_seed_agrees_with_the_normal_approximation(level: float) -> None:
    flags = _flags((1, 1000), 0.6)
    mean, low, high = bootstrap_interval(flags, level=level, num_resamples=20_000)
    p = flags.mean()
    half = {0.9: 1.645, 0.95: 1.960}[level] * np.sqrt(p * (1 - p) / 1000)
    assert mean == pytest.approx(p)
    assert (low, high) == pytest.approx((p - half, p + half), abs=0.05 * half)


def test_equals_a_plain_loop_over_seed_and_image_indices() -> None:
    rng = np.random.default_rng(5)
    flags = rng.random((3, 40)) < np.array([[0.3], [0.5], [0.9]]) * rng.random(40)
    means = []
    for _ in range(20_000):
        seeds, images = rng.integers(0, 3, 3), rng.integers(0, 40, 40)
        means.append(flags[seeds][:, images].mean())
    expected = np.quantile(means, [0.025, 0.975])
    _, low, high = bootstrap_interval(flags, num_resamples=20_000)
    assert (low, high) == pytest.approx(tuple(expected), abs=0.012)


def test_resamples_seeds() -> None:
    """Seeds 0, 1, 1 and no noise in images: all-equal draws have probability 1/27 > 2.5 %."""
    flags = np.repeat([[False], [True], [True]], 50, axis=1)
    assert bootstrap_interval(flags) == pytest.approx((2 / 3, 0.0, 1.0))


def test_coverage_of_one_seed() -> None:
    rng = np.random.default_rng(2)
    hits = 0
    for trial in range(300):
        flags = rng.random((1, 300)) < 0.7
        _, low, high = bootstrap_interval(flags, num_resamples=400, seed=trial)
        hits += low <= 0.7 <= high
    assert 0.91 <= hits / 300 <= 0.985


def test_coverage_of_a_paired_difference() -> None:
    """Both share the images' difficulty; b is wrong on another 3 % of images in expectation."""
    rng = np.random.default_rng(3)
    hits = separate = 0
    for trial in range(200):
        easy = rng.random(400) < 0.6
        a = easy & (rng.random((8, 400)) < 0.97)
        b = easy & (rng.random((8, 400)) < 0.92)
        mean, low, high = paired_difference(a, b, num_resamples=400, seed=trial)
        assert mean == pytest.approx(a.mean() - b.mean())
        hits += low <= 0.6 * 0.05 <= high
        one = bootstrap_interval(a, num_resamples=400)
        separate += (high - low) < (one[2] - one[1]) / 2
    assert 0.88 <= hits / 200 <= 1.0
    assert separate == 200


def test_paired_difference_of_equal_and_opposite_flags() -> None:
    a = _flags((3, 200), 0.5)
    assert paired_difference(a, a) == (0.0, 0.0, 0.0)
    assert paired_difference(np.ones_like(a), np.zeros_like(a)) == (1.0, 1.0, 1.0)
    b = _flags((3, 200), 0.4, seed=1)
    mean, low, high = paired_difference(a, b)
    assert paired_difference(b, a)[0] == -mean
    assert low < mean < high


def test_same_seed_same_interval_and_images_may_be_permuted() -> None:
    flags = _flags((3, 100), 0.5)
    order = np.random.default_rng(0).permutation(100)
    assert bootstrap_interval(flags, seed=4) == bootstrap_interval(flags[:, order], seed=4)
    assert bootstrap_interval(flags, seed=4) != bootstrap_interval(flags, seed=5)


def test_bad_input_is_named() -> None:
    good = _flags((2, 10), 0.5)
    with pytest.raises(ValueError, match="shape"):
        bootstrap_interval(good[0])
    with pytest.raises(ValueError, match="not empty"):
        bootstrap_interval(good[:, :0])
    with pytest.raises(ValueError, match="dtype"):
        bootstrap_interval(good.astype(float))
    with pytest.raises(ValueError, match="level"):
        bootstrap_interval(good, level=95)
    with pytest.raises(ValueError, match="num_resamples"):
        bootstrap_interval(good, num_resamples=0)
    with pytest.raises(ValueError, match="equal shapes"):
        paired_difference(good, good[:, :5])
