"""Measures of generated images: against scikit-learn, SciPy, closed forms and cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm
from sklearn.neighbors import NearestNeighbors

from ssat_ray.diffusion.quality import (
    Seen,
    coverage_density,
    frechet_distance,
    judged,
    nearest_distances,
)

RNG = np.random.default_rng(0)


def test_coverage_and_density_equal_their_definition() -> None:
    real, generated = RNG.normal(size=(1500, 6)), RNG.normal(size=(700, 6)) * 0.8 + 0.3
    distances, _ = NearestNeighbors(n_neighbors=6).fit(real).kneighbors(real)
    inside = np.linalg.norm(real[:, None] - generated[None], axis=2) <= distances[:, -1:]
    coverage, density = coverage_density(real, generated)
    assert coverage == inside.any(1).mean()
    assert density == pytest.approx(inside.sum(0).mean() / 5, rel=1e-12)


def test_copies_of_the_real_points_cover_them_and_far_ones_do_not() -> None:
    real = RNG.normal(size=(100, 4))
    assert coverage_density(real, real) == (1.0, pytest.approx(1.0, abs=0.4))
    assert coverage_density(real, real[:10])[0] < 0.7
    assert coverage_density(real, real + 100) == (0.0, 0.0)
    with pytest.raises(ValueError, match="more than 5 real points, found 5"):
        coverage_density(real[:5], real)


def test_the_frechet_distance_is_that_of_scipys_square_root() -> None:
    a = RNG.normal(size=(400, 5)) @ RNG.normal(size=(5, 5)) + 1
    b = RNG.normal(size=(300, 5)) @ RNG.normal(size=(5, 5))
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    expected = np.square(a.mean(0) - b.mean(0)).sum()
    expected += np.trace(cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a, a + 2) == pytest.approx(5 * 4, rel=1e-9)


def test_dead_units_have_a_frechet_distance_too() -> None:
    a = np.concatenate([RNG.normal(size=(50, 3)), np.zeros((50, 2))], axis=1)
    assert np.isfinite(frechet_distance(a, a[:20]))


def test_the_nearest_training_image() -> None:
    train = np.zeros((2, 2, 2, 1), np.uint8)
    train[1] = 255
    images = np.zeros((3, 2, 2, 1), np.uint8)
    images[1, 0, 0] = 51
    images[2] = 204
    np.testing.assert_allclose(nearest_distances(images, train), [0, 0.2, 0.4])


def test_what_a_classifier_says_of_two_sets() -> None:
    """Scores 0..99 of the base images: 20 lie below the quantile; of the guided ones 60 of 80 do."""

    def seen(score: np.ndarray, classes: np.ndarray) -> Seen:
        return Seen(RNG.normal(size=(len(score), 2)), 4.0 * np.eye(3)[classes], score)

    base = seen(np.arange(100.0), np.arange(100) % 3)
    guided = seen(np.r_[np.zeros(60), np.full(20, 50.0)], np.zeros(80, int))
    real = seen(np.arange(50.0), np.arange(50) % 3)
    labels = {"base": np.arange(100) % 3, "guided": np.arange(80) % 3, "real": np.arange(50) % 3}
    found = judged(base, guided, real, labels)
    assert found["near"] == 0.75 and found["median_ratio"] == 0.0
    assert found["base"]["agreement"] == 1.0 and found["guided"]["agreement"] == 27 / 80
    assert found["guided"]["classes"] == [80, 0, 0] and found["base"]["classes"] == [34, 33, 33]
    assert found["base"]["score"]["0.5"] == 49.5
    assert found["base"]["confidence"] == pytest.approx(np.exp(4) / (np.exp(4) + 2), rel=1e-6)
    assert found["base"]["coverage"] == coverage_density(real.h, base.h[:80])[0]
    assert "coverage" not in found["real"] and found["guided"]["frechet"] > 0
