"""Where a refinement is, on disk: the same state again, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ssat_ray.selection import em
from ssat_ray.selection.gmm import GaussianMixture, fit_gmm
from ssat_ray.selection.points import Frame
from ssat_ray.stages.refine import State

H = np.random.default_rng(0).normal(size=(400, 5)).astype(np.float32)


def test_centroids(tmp_path: Path) -> None:
    state = State(Frame.fit(H, bits=24), H[:3].copy(), (3.0, 2.5), 12.5)
    state.save(tmp_path / "state")
    found = State.load(tmp_path / "state", "diag")
    assert np.array_equal(np.asarray(found.clusters), H[:3])
    assert (found.history, found.seconds, found.frame.grid) == ((3.0, 2.5), 12.5, state.frame.grid)
    assert np.array_equal(found.frame.points(H).numpy(), state.frame.points(H).numpy())


@pytest.mark.parametrize("covariance", ["diag", "tied", "full"])
@pytest.mark.parametrize("pca_dims", [None, 3])
def test_mixtures(tmp_path: Path, covariance: str, pca_dims: int | None) -> None:
    mixture = fit_gmm(H, 2, covariance=covariance, pca_dims=pca_dims)
    frame = em.mixture_frame(H, mixture)
    state = State(frame, em.into_frame(mixture, frame))
    state.save(tmp_path / "state")
    found = State.load(tmp_path / "state", covariance)
    assert isinstance(found.clusters, GaussianMixture)
    points = frame.points(H)
    assert np.array_equal(found.frame.points(H).numpy(), points.numpy())
    once, again = (
        em.em_statistics(points, clusters, frame.grid)
        for clusters in (state.clusters, found.clusters)
    )
    assert np.array_equal(once.second.value(), again.second.value())
    assert once.log_likelihood.value() == again.log_likelihood.value()
