"""Exact EM iterations against scikit-learn's, and the log-likelihood reached from the same start."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import numpy as np
import torch

from ssat_ray.bench.kmeans import blobs
from ssat_ray.bench.measure import Comparison, alternate
from ssat_ray.selection.em import (
    EMStatistics,
    em_statistics,
    into_frame,
    mixture_frame,
    out_of_frame,
    refine,
    update,
)
from ssat_ray.selection.exact import Grid, merged
from ssat_ray.selection.gmm import COVARIANCES, GaussianMixture, fit_gmm
from ssat_ray.selection.points import Frame
from ssat_ray.selection.scores import Float32

_BAR = 3.0
_SAMPLE = 5_000
_QUALITY_ROWS = 10_000
_DENSE_SHARE = 20
_REG_COVAR = 1e-6


def run(
    rows: int = 1_000_000, width: int = 64, k: int = 10, threads: int = 2, repeats: int = 5
) -> list[Comparison]:
    """Seconds of one EM iteration from the same mixture, at 1 and `threads` threads; then quality.

    Timed on our side: `em_statistics` and `update`, on points already on their grid and, for several
    threads, split among them. Timed on scikit-learn's: `_e_step` and `_m_step`, which are an
    iteration of its `fit` without the initialisation, on float64 rows with as many BLAS threads. Tied
    and full covariances take 1 row in 20, and no bar. The rows are overlapping blobs.

    Noted for each kind: the mean log-likelihood after iterations from the same start, until it rises
    by less than 1e-6 nats, of at most 10,000 rows of blobs further apart; ours - scikit-learn's.
    """
    h = blobs(rows, width, k, spread=0.3)
    apart = blobs(min(rows, _QUALITY_ROWS), width, k, spread=1.0)
    lines = []
    for kind in COVARIANCES:
        start = fit_gmm(h[:_SAMPLE], k, covariance=kind, restarts=1, max_iter=2)
        part = h if kind == "diag" else h[: max(_SAMPLE, rows // _DENSE_SHARE)]
        difference = _difference(apart, fit_gmm(apart, k, covariance=kind, restarts=1, max_iter=1))
        for num_threads in sorted({1, threads}):
            lines.append(_iteration(part, start, num_threads, repeats, difference))
    return lines


def _iteration(
    h: Float32, start: GaussianMixture, threads: int, repeats: int, difference: float
) -> Comparison:
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    frame = mixture_frame(h[:_SAMPLE], start)
    inside = into_frame(start, frame)
    points = frame.points(h)
    reference = _scikit(start)
    rows = h.astype(np.float64)

    def ours() -> None:
        with threadpool_limits(1):
            update(_statistics(points, inside, frame.grid, threads), inside, frame, _REG_COVAR)

    def bare() -> None:
        with threadpool_limits(threads):
            _, log_resp = reference._e_step(rows)
            reference._m_step(rows, log_resp)

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = alternate({"ours": ours, "bare": bare}, repeats)
    torch.set_num_threads(before)
    kind = start.covariance_type
    return Comparison(
        f"EM iteration, {kind}, {len(h):,} x {h.shape[1]}, k = {len(start.weights)}, "
        f"{threads} thread(s)",
        seconds["ours"],
        seconds["bare"],
        bar=_BAR if kind == "diag" else None,
        notes={"log-likelihood difference": f"{difference:.2e}"},
    )


def _statistics(
    points: torch.Tensor, mixture: GaussianMixture, grid: Grid, threads: int
) -> EMStatistics:
    """As an actor with `threads` CPUs computes them."""
    parts = points.tensor_split(threads)
    return merged([partial(em_statistics, part, mixture, grid) for part in parts])


def _scikit(start: GaussianMixture, **settings: Any) -> Any:
    """Scikit-learn's mixture at the start, ready for an E-step."""
    from sklearn.mixture import GaussianMixture as ScikitMixture
    from sklearn.mixture._gaussian_mixture import _compute_precision_cholesky

    kind = start.covariance_type
    found = ScikitMixture(
        len(start.weights), covariance_type=kind, reg_covar=_REG_COVAR, **settings
    )
    found.weights_, found.means_ = start.weights, start.means
    found.precisions_cholesky_ = _compute_precision_cholesky(start.covariances, kind)
    return found


def _difference(h: Float32, start: GaussianMixture) -> float:
    """Mean log-likelihood after convergence from the same start: ours - scikit-learn's, nats."""
    settings: dict[str, Any] = {"tol": 1e-6, "max_iter": 200}
    if start.covariance_type == "diag":
        settings["precisions_init"] = 1 / start.covariances
    else:
        settings["precisions_init"] = np.linalg.inv(start.covariances)
    reference = _scikit(start, means_init=start.means, weights_init=start.weights, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference.fit(h.astype(np.float64))
    fitted = _refined(h, start, mixture_frame(h[:_SAMPLE], start))
    return float(fitted.log_likelihood - reference.score(h.astype(np.float64)))


def _refined(h: Float32, start: GaussianMixture, frame: Frame) -> GaussianMixture:
    points = frame.points(h)

    def expect(mixture: GaussianMixture) -> EMStatistics:
        return em_statistics(points, mixture, frame.grid)

    found, _ = refine(
        expect,
        into_frame(start, frame),
        frame,
        iterations=200,
        tolerance=1e-6,
        reg_covar=_REG_COVAR,
    )
    return out_of_frame(found, frame)
