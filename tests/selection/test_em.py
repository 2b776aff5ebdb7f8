"""Exact EM: against scikit-learn from the same start, and the same bits for any split of the rows."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture as ScikitMixture

from ssat_ray.selection import em
from ssat_ray.selection.em import (
    EMStatistics,
    em_statistics,
    into_frame,
    mixture_frame,
    out_of_frame,
    refine,
    update,
)
from ssat_ray.selection.gmm import GaussianMixture, fit_gmm

ROWS, WIDTH, K = 6001, 8, 4


def embeddings() -> np.ndarray:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(K, WIDTH)) * 2 * rng.gamma(1, 1, WIDTH)
    spread = rng.gamma(1, 1, WIDTH) + 0.1
    h = centres[rng.integers(K, size=ROWS)] + rng.normal(size=(ROWS, WIDTH)) * spread + 3
    return h.astype(np.float32)


H = embeddings()


def start(covariance: str, pca: int | None) -> GaussianMixture:
    return fit_gmm(H[:1500], K, covariance=covariance, pca_dims=pca, restarts=1, max_iter=3)


def scikit(mixture: GaussianMixture, **settings: Any) -> ScikitMixture:
    """Scikit-learn's, about to start from this mixture."""
    kind = mixture.covariance_type
    covariances = mixture.covariances
    return ScikitMixture(
        len(mixture.weights),
        covariance_type=kind,
        means_init=mixture.means,
        weights_init=mixture.weights,
        precisions_init=1 / covariances if kind == "diag" else np.linalg.inv(covariances),
        **settings,
    )


CASES = [(c, p) for c in ("diag", "tied", "full") for p in (None, 5)]


@pytest.mark.parametrize(("covariance", "pca"), CASES)
def test_statistics_do_not_depend_on_sharding(covariance: str, pca: int | None) -> None:
    mixture = start(covariance, pca)
    frame = mixture_frame(H[:1500], mixture)
    inside = into_frame(mixture, frame)
    whole = em_statistics(frame.points(H), inside, frame.grid)
    order = np.random.default_rng(1).permutation(ROWS)
    parts = [
        em_statistics(frame.points(piece), inside, frame.grid)
        for piece in np.split(H[order], [5, 2053, 4000])
    ]
    total = parts[0]
    for part in parts[1:]:
        total = total.merge(part)
    assert total.rows == whole.rows == ROWS
    for name in ("mass", "first", "second", "log_likelihood"):
        np.testing.assert_array_equal(getattr(total, name).value(), getattr(whole, name).value())
    assert (total.rest is None) == (covariance == "tied")
    if total.rest is not None and whole.rest is not None:
        np.testing.assert_array_equal(total.rest.value(), whole.rest.value())


@pytest.mark.parametrize("covariance", ["diag", "narrow", "tied", "full"])
@pytest.mark.parametrize("width", [8, 33, 128, 255])
@pytest.mark.parametrize("num_components", [2, 7, 50])
def test_the_place_in_a_block_changes_no_bit(
    covariance: str, width: int, num_components: int, one_thread: None
) -> None:
    """Before anything is rounded to a grid, which would hide all but one difference in a million."""
    rng = np.random.default_rng(7)
    kind = "diag" if covariance == "narrow" else covariance
    spread = rng.uniform(0.5, 2, (num_components, width))
    mixture = GaussianMixture(
        weights=np.full(num_components, 1 / num_components),
        means=rng.normal(size=(num_components, width)),
        covariances={
            "diag": spread,
            "tied": np.diag(spread[0]) + 0.01,
            "full": np.einsum("kp,pq->kpq", spread, np.eye(width)) + 0.01,
        }[kind],
        covariance_type=kind,
        pca_mean=None,
        pca_components=None,
        log_likelihood=0.0,
        num_iterations=0,
        converged=False,
    )
    joint: em._Diagonal | em._Dense
    if kind == "diag":
        joint = em._Diagonal(mixture, square_unit=1.0 if covariance == "narrow" else 2.0**-30)
        assert joint.narrow == (covariance == "narrow")
    else:
        joint = em._Dense(mixture)
    block = torch.from_numpy(rng.normal(size=(joint.rows, width)).astype(np.float32))
    expected, log_p = (t.clone() for t in em._posterior(joint(block)))
    assert log_p.unique().numel() > 0.9 * joint.rows
    for shift in (1, 5, 24, joint.rows // 2 + 3):
        found, found_log_p = em._posterior(joint(block.roll(shift, 0)))
        assert torch.equal(found.roll(-shift, 1), expected)
        assert torch.equal(found_log_p.roll(-shift, 0), log_p)


@pytest.mark.parametrize("covariance", ["diag", "full"])
def test_a_coordinate_that_is_constant_in_a_cluster_keeps_its_small_variance(
    covariance: str,
) -> None:
    """Units that are dead for a class: the variance is `reg_covar`, however far the constant lies."""
    rng = np.random.default_rng(3)
    h = rng.normal(0, 1, (4_000, 3)).astype(np.float32)
    h[:2_000] += np.float32(9)
    h[:2_000, 2] = 0.7371
    mixture = fit_gmm(h, 2, covariance=covariance, seed=0)
    frame = mixture_frame(h, mixture)
    found = em_statistics(frame.points(h), into_frame(mixture, frame), frame.grid)
    updated = out_of_frame(update(found, into_frame(mixture, frame), frame, 1e-6), frame)
    dead = int(updated.means[:, 0].argmax())
    variances = updated.covariances[dead]
    variance = variances[2] if covariance == "diag" else variances[2, 2]
    assert variance == pytest.approx(1e-6, rel=1e-3)


@pytest.mark.parametrize("covariance", ["diag", "tied", "full"])
@pytest.mark.parametrize(("scale", "constant"), [(1, 0.7371), (10, 2.0), (10, 7.371), (100, 73.71)])
def test_dead_units_converge_as_in_scikit_learn(
    covariance: str, scale: float, constant: float
) -> None:
    rng = np.random.default_rng(5)
    h = rng.normal(size=(4_000, 4)) + 4 * rng.integers(0, 2, (4_000, 1))
    h *= scale
    h[h[:, 0] > 2 * scale, 3] = constant
    h = h.astype(np.float32)
    mixture = fit_gmm(h[:500], 2, covariance=covariance, restarts=1, max_iter=2)
    reference = scikit(mixture, max_iter=100, tol=1e-7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference.fit(h.astype(np.float64))
    frame = mixture_frame(h, mixture)
    points = frame.points(h)
    found, history = refine(
        lambda current: em_statistics(points, current, frame.grid),
        into_frame(mixture, frame),
        frame,
        iterations=100,
        tolerance=1e-7,
        reg_covar=1e-6,
    )
    assert (np.diff(history) > -1e-3).all()
    difference = out_of_frame(found, frame).log_likelihood - reference.score(h.astype(np.float64))
    assert abs(difference) < 1e-3


@pytest.mark.parametrize(("covariance", "pca"), CASES)
def test_em_is_that_of_scikit_learn(covariance: str, pca: int | None) -> None:
    mixture = start(covariance, pca)
    frame = mixture_frame(H[:1500], mixture)
    points = frame.points(H)

    def expect(current: GaussianMixture) -> EMStatistics:
        return em_statistics(points, current, frame.grid)

    settings: dict[str, Any] = {"iterations": 8, "tolerance": -np.inf, "reg_covar": 1e-6}
    found, history = refine(expect, into_frame(mixture, frame), frame, **settings)
    fitted = out_of_frame(found, frame)
    y = H.astype(np.float64)
    if pca is not None:
        y = (y - mixture.pca_mean) @ mixture.pca_components.T
    reference = scikit(mixture, max_iter=8, tol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference.fit(y)
    assert len(history) == 9 and found.num_iterations == 8
    assert abs(fitted.log_likelihood - reference.score(y)) < 1e-4
    np.testing.assert_allclose(fitted.means, reference.means_, atol=2e-3)
    np.testing.assert_allclose(fitted.weights, reference.weights_, atol=1e-3)


@pytest.mark.parametrize("covariance", ["diag", "tied", "full"])
def test_rows_far_beyond_the_sample(covariance: str) -> None:
    """A unit that is all but dead in the sample: only a grid that covers all rows can hold its squares."""
    h = H.copy()
    h[:1500, 0], h[7, 0], h[5000, 0] = 0, 0.01, 200
    mixture = fit_gmm(h[:1500], K, covariance=covariance, restarts=1, max_iter=3)
    frame = mixture_frame(h[:1500], mixture)
    inside = into_frame(mixture, frame)
    with pytest.raises(OverflowError):
        em_statistics(frame.points(h), inside, frame.grid)
    frame = frame.covering(frame.largest(h))
    found = em_statistics(frame.points(h), inside, frame.grid)
    assert found.first.value().sum(0)[0] == pytest.approx(
        frame.points(h).double()[:, 0].sum().item(), rel=1e-3
    )


def test_a_mixture_survives_the_change_of_coordinates() -> None:
    for covariance, pca in CASES:
        mixture = start(covariance, pca)
        frame = mixture_frame(H[:1500], mixture)
        back = out_of_frame(into_frame(mixture, frame), frame)
        np.testing.assert_allclose(back.log_joint(H[:50]), mixture.log_joint(H[:50]), atol=1e-8)


def test_an_interrupted_refinement_ends_the_same() -> None:
    mixture = start("diag", None)
    frame = mixture_frame(H[:1500], mixture)
    points = frame.points(H)

    def expect(current: GaussianMixture) -> EMStatistics:
        return em_statistics(points, current, frame.grid)

    seen: list[tuple[GaussianMixture, tuple[float, ...]]] = []
    settings: dict[str, Any] = {"iterations": 6, "tolerance": 1e-9, "reg_covar": 1e-6}
    whole, history = refine(
        expect,
        into_frame(mixture, frame),
        frame,
        **settings,
        checkpoint=lambda m, h: seen.append((m, h)),
    )
    resumed, again = refine(expect, seen[2][0], frame, **settings, history=seen[2][1])
    assert again == history
    np.testing.assert_array_equal(resumed.means, whole.means)
    np.testing.assert_array_equal(resumed.covariances, whole.covariances)


def test_narrow_components_are_computed_in_float64() -> None:
    rng = np.random.default_rng(2)
    centres = rng.normal(size=(3, 4)) * 10
    spread = 1e-3
    h = (centres[rng.integers(3, size=3000)] + rng.normal(size=(3000, 4)) * spread).astype(
        np.float32
    )
    mixture = fit_gmm(h, 3, covariance="diag", restarts=1, reg_covar=1e-9)
    frame = mixture_frame(h, mixture)
    points, inside = frame.points(h), into_frame(mixture, frame)
    assert float((1 / inside.covariances).sum(1).max()) > em._FLOAT32_PRECISION_SUM
    found = em_statistics(points, inside, frame.grid)
    joint = inside.log_joint(points.double().numpy())
    expected = np.logaddexp.reduce(joint, axis=1).mean()
    assert abs(float(found.log_likelihood.value()) / 3000 - expected) < 1e-6
    pieces = [em_statistics(part, inside, frame.grid) for part in points.split(1234)]
    total = pieces[0].merge(pieces[1]).merge(pieces[2])
    for name in ("mass", "first", "second", "log_likelihood"):
        np.testing.assert_array_equal(getattr(total, name).value(), getattr(found, name).value())


@pytest.mark.parametrize("covariance", ["diag", "tied", "full"])
def test_statistics_against_a_float64_loop(covariance: str) -> None:
    mixture = start(covariance, None)
    frame = mixture_frame(H[:1500], mixture)
    inside = into_frame(mixture, frame)
    points = frame.points(H)
    x = points.double().numpy()
    joint = inside.log_joint(x)
    r = np.exp(joint - np.logaddexp.reduce(joint, axis=1)[:, None])
    found = em_statistics(points, inside, frame.grid)
    second = {"diag": "nk,np->kp", "tied": "nk,np,nq->pq", "full": "nk,np,nq->kpq"}[covariance]
    terms = (r, x * x) if covariance == "diag" else (r, x, x)
    np.testing.assert_allclose(found.mass.value(), r.sum(0), rtol=1e-5)
    np.testing.assert_allclose(found.first.value(), r.T @ x, rtol=1e-4, atol=0.05)
    np.testing.assert_allclose(
        found.second.value(), np.einsum(second, *terms, optimize=True), rtol=1e-4, atol=0.05
    )
