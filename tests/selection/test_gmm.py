"""The mixture's log-densities against scikit-learn's, and its life as tensors and JSON."""

import json

import numpy as np
import pytest
from safetensors.numpy import load, save
from sklearn.datasets import make_blobs
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture as ScikitMixture
from sklearn.mixture._gaussian_mixture import _compute_precision_cholesky

from ssat_ray.selection import gmm
from ssat_ray.selection.gmm import COVARIANCES, GaussianMixture, fit_gmm


@pytest.fixture(scope="module")
def blobs():
    return make_blobs(1500, 6, centers=4, cluster_std=2.5, random_state=3)[0]


def _oracle(mixture):
    oracle = ScikitMixture(len(mixture.weights), covariance_type=mixture.covariance_type)
    oracle.weights_, oracle.means_ = mixture.weights, mixture.means
    oracle.precisions_cholesky_ = _compute_precision_cholesky(
        mixture.covariances, mixture.covariance_type
    )
    return oracle


@pytest.mark.parametrize("pca_dims", [None, 3])
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_log_joint_equals_scikit_learn(blobs, covariance, pca_dims):
    mixture = fit_gmm(blobs, 4, covariance=covariance, pca_dims=pca_dims, restarts=1)
    x = blobs if pca_dims is None else PCA(pca_dims, random_state=0).fit(blobs).transform(blobs)
    expected = _oracle(mixture)._estimate_weighted_log_prob(x)
    found = mixture.log_joint(blobs)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    likelihood = np.logaddexp.reduce(found, axis=1)
    np.testing.assert_allclose(likelihood, _oracle(mixture).score_samples(x), rtol=1e-9)
    assert mixture.log_likelihood == pytest.approx(likelihood.mean(), rel=1e-12)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_fit_is_scikit_learns_with_components_in_order(blobs, covariance):
    oracle = ScikitMixture(
        4, covariance_type=covariance, n_init=2, max_iter=200, random_state=5
    ).fit(blobs)
    found = fit_gmm(blobs, 4, covariance=covariance, restarts=2, seed=5)
    order = np.argsort(oracle.means_[:, 0])
    np.testing.assert_allclose(found.means, oracle.means_[order], rtol=1e-9)
    np.testing.assert_allclose(found.weights, oracle.weights_[order], rtol=1e-9)
    assert found.converged
    assert found.num_iterations == oracle.n_iter_
    assert found.log_likelihood == pytest.approx(oracle.score(blobs), rel=1e-9)


def test_log_joint_of_a_unit_normal_in_closed_form():
    mixture = GaussianMixture(
        np.array([0.25, 0.75]), np.array([[0.0, 0], [3, 4]]), np.ones((2, 2)), "diag",
        None, None, 0.0, 1, True,
    )  # fmt: skip
    found = mixture.log_joint(np.zeros((1, 2), np.float32))
    normal = -np.log(2 * np.pi)
    np.testing.assert_allclose(
        found, [[np.log(0.25) + normal, np.log(0.75) + normal - 12.5]], rtol=1e-14
    )


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_log_joint_rows_do_not_depend_on_company(blobs, covariance):
    mixture = fit_gmm(blobs, 4, covariance=covariance, pca_dims=5, restarts=1)
    whole = mixture.log_joint(blobs)
    assert len(blobs) > gmm._BLOCK_ROWS
    for rows in (slice(0, 1), slice(700, 717), slice(1020, 1500)):
        np.testing.assert_array_equal(mixture.log_joint(blobs[rows]), whole[rows])


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("width", [33, 64, 255])
@pytest.mark.parametrize("pca_dims", [None, 21])
def test_the_place_in_a_block_changes_no_bit(covariance, width, pca_dims, one_thread):
    h = np.random.default_rng(0).normal(size=(gmm._BLOCK_ROWS, width)).astype(np.float32)
    mixture = fit_gmm(h, 3, covariance=covariance, pca_dims=pca_dims, restarts=1, max_iter=2)
    whole = mixture.log_joint(h)
    for shift in (1, 5, 24, gmm._BLOCK_ROWS // 2 + 3):
        found = mixture.log_joint(np.roll(h, shift, axis=0))
        np.testing.assert_array_equal(np.roll(found, -shift, axis=0), whole)


@pytest.mark.parametrize("pca_dims", [None, 2])
def test_survives_safetensors_and_json(blobs, pca_dims):
    mixture = fit_gmm(blobs, 3, covariance="full", pca_dims=pca_dims, restarts=1)
    again = GaussianMixture.from_tensors(
        load(save(mixture.to_tensors())), json.loads(json.dumps(mixture.metadata()))
    )
    np.testing.assert_array_equal(again.log_joint(blobs), mixture.log_joint(blobs))
    assert again.metadata() == mixture.metadata()
    assert ("pca_mean" in again.to_tensors()) == (pca_dims is not None)


def test_same_seed_same_result(blobs):
    first, second = (fit_gmm(blobs, 4, seed=2, pca_dims=4, restarts=1) for _ in range(2))
    for name, tensor in first.to_tensors().items():
        np.testing.assert_array_equal(tensor, second.to_tensors()[name])


def test_stopping_early_is_recorded(blobs):
    mixture = fit_gmm(blobs, 4, max_iter=1, restarts=1)
    assert not mixture.converged
    assert mixture.num_iterations == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 1}, r"cluster\.k .* found 1"),
        ({"k": 1501}, r"cluster\.k .* \(1500\), found 1501"),
        ({"k": 2, "covariance": "round"}, r"cluster\.covariance .* found 'round'"),
        ({"k": 2, "pca_dims": 0}, r"cluster\.pca_dims .* = 6, found 0"),
        ({"k": 2, "pca_dims": 7}, r"cluster\.pca_dims .* = 6, found 7"),
    ],
)
def test_fit_refuses(blobs, settings, message):
    with pytest.raises(ValueError, match=message):
        fit_gmm(blobs, **settings)


def test_fit_refuses_rows_that_are_not_finite(blobs):
    with pytest.raises(ValueError, match="1 of 1501 embeddings are not finite"):
        fit_gmm(np.vstack([blobs, np.full((1, 6), np.nan)]), 2)


def test_log_joint_refuses_another_width(blobs):
    mixture = fit_gmm(blobs, 2, pca_dims=2, restarts=1)
    with pytest.raises(ValueError, match=r"takes \(N, 6\) embeddings, found \(5, 2\)"):
        mixture.log_joint(np.zeros((5, 2)))


def test_from_tensors_names_what_is_missing(blobs):
    mixture = fit_gmm(blobs, 2, restarts=1)
    tensors, metadata = mixture.to_tensors(), mixture.metadata()
    del tensors["means"], metadata["converged"]
    with pytest.raises(ValueError, match="lacks means, converged"):
        GaussianMixture.from_tensors(tensors, metadata)


def test_covariances_of_another_shape_are_refused(blobs):
    mixture = fit_gmm(blobs, 2, restarts=1)
    with pytest.raises(ValueError, match=r"full covariances .* must be \(2, 6, 6\)"):
        GaussianMixture.from_tensors(
            mixture.to_tensors(), {**mixture.metadata(), "covariance_type": "full"}
        )
