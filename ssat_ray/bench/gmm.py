"""Exact EM iterations against scikit-learn's, and the log-likelihood reached from the same start."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from ssat_ray.bench.clustering import actors_holding, one_thread
from ssat_ray.bench.kmeans import blobs
from ssat_ray.bench.measure import Comparison, alternate
from ssat_ray.config import RuntimeConfig
from ssat_ray.runtime import ray_session
from ssat_ray.selection.em import (
    EMStatistics,
    em_statistics,
    into_frame,
    mixture_frame,
    out_of_frame,
    refine,
    update,
)
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

    Timed on our side: `em_statistics` and `update`, on points already on their grid; of several threads, by
    the pipeline's clustering actors, one thread each, with all that they exchange. Timed on scikit-learn's:
    `_e_step` and `_m_step`, which are an iteration of its `fit` without the initialisation, with as many
    BLAS threads, on float64 rows; and, without a bar, on float32 rows, whose sums it then takes in float32
    too. Tied and full covariances take 1 row in 20, and no bar. The rows are
    overlapping blobs.

    Noted for each kind: the mean log-likelihood after iterations from the same start, until it rises
    by less than 1e-6 nats, of at most 10,000 rows of blobs further apart; ours - scikit-learn's.
    """
    h = blobs(rows, width, k, spread=0.3)
    apart = blobs(min(rows, _QUALITY_ROWS), width, k, spread=1.0)
    lines = []
    runtime = RuntimeConfig(num_cpus=threads, train_workers=1, actors=threads)
    with ray_session(runtime):  # one for all kinds
        for kind in COVARIANCES:
            start = fit_gmm(h[:_SAMPLE], k, covariance=kind, restarts=1, max_iter=2)
            part = h if kind == "diag" else h[: max(_SAMPLE, rows // _DENSE_SHARE)]
            difference = _difference(
                apart, fit_gmm(apart, k, covariance=kind, restarts=1, max_iter=1)
            )
            with one_thread():
                frame = mixture_frame(part[:_SAMPLE], start)
                points = frame.points(part)
                alone = partial(em_statistics, points, grid=frame.grid)
                lines += _iterations(part, start, frame, alone, 1, repeats, difference)
                with actors_holding(part, frame, threads) as fresh:
                    together = partial(fresh(), "em")
                    lines += _iterations(part, start, frame, together, threads, repeats, difference)
    return lines


def _iterations(
    h: Float32,
    start: GaussianMixture,
    frame: Frame,
    expect: Callable[[GaussianMixture], EMStatistics],
    threads: int,
    repeats: int,
    difference: float,
) -> list[Comparison]:
    """A line against scikit-learn in float64 and, for diagonal covariances, one against it in float32."""
    inside = into_frame(start, frame)
    kinds = (np.float64, np.float32) if start.covariance_type == "diag" else (np.float64,)
    candidates: dict[str, Callable[[], object]] = {
        "ours": lambda: update(expect(inside), inside, frame, _REG_COVAR)
    }
    for kind in kinds:
        candidates[kind.__name__] = partial(_scikit_iteration, start, h.astype(kind), threads)
    seconds = alternate(candidates, repeats)
    what = f"EM iteration, {start.covariance_type}, {len(h):,} x {h.shape[1]}, k = {len(start.weights)}"
    who = "1 thread" if threads == 1 else f"{threads} actors"
    return [
        Comparison(
            f"{what}, {who}" + (", against float32" if kind is np.float32 else ""),
            seconds["ours"],
            seconds[kind.__name__],
            bar=_BAR if start.covariance_type == "diag" and kind is np.float64 else None,
            notes={"log-likelihood difference": f"{difference:.2e}"},
        )
        for kind in kinds
    ]


def _scikit_iteration(start: GaussianMixture, rows: np.ndarray, threads: int) -> None:
    """One of scikit-learn's from the start, in the precision of the rows."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    reference = _scikit(start)
    for name in ("weights_", "means_", "precisions_cholesky_"):
        setattr(reference, name, getattr(reference, name).astype(rows.dtype))
    with threadpool_limits(threads):
        _, log_resp = reference._e_step(rows)
        reference._m_step(rows, log_resp)


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
