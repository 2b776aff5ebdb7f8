"""Exact distributed EM for Gaussian mixtures: every holder of points returns sufficient statistics only.

Works in the coordinates of a scaled `Frame`. Responsibilities, points and squares are rounded to grids
whose products float64 adds exactly (exact.py), so the mixture is bit-identical for any number of actors
and any sharding of the pool on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from ssat_ray.selection.exact import ExactSum, Grid
from ssat_ray.selection.gmm import GaussianMixture
from ssat_ray.selection.points import Frame, blocks
from ssat_ray.selection.scores import Float64

POINT_BITS = 21
"""Bits of the points' grid: with RESPONSIBILITIES and BLOCK_ROWS just within float64's 53."""
RESPONSIBILITIES = Grid(-20, 20)
LOG_LIKELIHOODS = Grid(-24, 40)
BLOCK_ROWS = 2048
_FLOAT32_PRECISION_SUM = 2.0**14


@dataclass(frozen=True, eq=False)
class EMStatistics:
    """Totals over points x with responsibilities r.

    Attributes:
        mass: sum r, (k,).
        first: sum r x, (k, p).
        second: sum r x^2 (k, p) for 'diag'; sum r x x^T (k, p, p) for 'full'; sum x x^T (p, p) for 'tied'.
        log_likelihood: sum log p(x), nats.
        rows: number of points.
    """

    mass: ExactSum
    first: ExactSum
    second: ExactSum
    log_likelihood: ExactSum
    rows: int

    def merge(self, other: EMStatistics) -> EMStatistics:
        """The totals over both holders' points; changes self's sums."""
        for name in ("mass", "first", "second", "log_likelihood"):
            getattr(self, name).merge(getattr(other, name))
        return replace(self, rows=self.rows + other.rows)


def mixture_frame(sample: np.ndarray, mixture: GaussianMixture) -> Frame:
    """The frame in which a mixture like this one is refined, fitted on the same sample."""
    return Frame.fit(
        sample,
        bits=POINT_BITS,
        scaled=True,
        components=mixture.pca_components,
        mean=mixture.pca_mean,
    )


def into_frame(mixture: GaussianMixture, frame: Frame) -> GaussianMixture:
    """The same mixture in the coordinates of the frame's points."""
    offset = frame.mean if frame.components is None else np.zeros(frame.width)
    return _rescaled(mixture, -frame.exponents, before=-offset)


def out_of_frame(mixture: GaussianMixture, frame: Frame) -> GaussianMixture:
    """Inverse of `into_frame`; the log-likelihood is that of the embeddings again."""
    offset = frame.mean if frame.components is None else np.zeros(frame.width)
    found = _rescaled(mixture, frame.exponents, after=offset)
    shift = float(frame.exponents.sum() * np.log(2.0))
    return replace(
        found,
        log_likelihood=mixture.log_likelihood - shift,
        pca_mean=None if frame.components is None else frame.mean,
        pca_components=frame.components,
    )


def _rescaled(
    mixture: GaussianMixture,
    exponents: np.ndarray,
    before: Float64 | float = 0.0,
    after: Float64 | float = 0.0,
) -> GaussianMixture:
    """Coordinates y = (x + before) 2^exponents + after; no PCA."""
    if mixture.covariance_type == "diag":
        powers = 2 * exponents
    else:
        powers = exponents[:, None] + exponents[None, :]
    return replace(
        mixture,
        means=np.ldexp(mixture.means + before, exponents) + after,
        covariances=np.ldexp(mixture.covariances, powers),
        pca_mean=None,
        pca_components=None,
    )


def em_statistics(points: torch.Tensor, mixture: GaussianMixture, grid: Grid) -> EMStatistics:
    """E-step over points (n, p) float32 on `grid` (POINT_BITS) for a mixture in their frame.

    The diagonal E-step runs in float32 while its rounding stays near 1e-3 nats a point, and in float64
    for narrower components.
    """
    kind = mixture.covariance_type
    num_components, width = mixture.means.shape
    squares = Grid(2 * grid.exponent + grid.bits, grid.bits)
    shape, terms = {
        "diag": ((num_components, width), RESPONSIBILITIES.times(squares)),
        "full": ((num_components, width, width), grid.times(grid)),
        "tied": ((width, width), grid.times(grid)),
    }[kind]
    mass = ExactSum((num_components,), RESPONSIBILITIES)
    first = ExactSum((num_components, width), RESPONSIBILITIES.times(grid))
    second = ExactSum(shape, terms)
    total = ExactSum((), LOG_LIKELIHOODS)
    log_joint = _log_joint(mixture)
    for rows, block in blocks(points, BLOCK_ROWS):
        real = rows.stop - rows.start
        joint = log_joint(block)
        top = joint.amax(0)
        weight = torch.exp(joint - top)
        norm = weight.sum(0)
        r = RESPONSIBILITIES.round((weight / norm).double())
        r[:, real:] = 0
        x = block.double()
        mass.add(r.sum(1))
        first.add(r @ x)
        if kind == "diag":
            second.add(r @ squares.round(x * x))
        elif kind == "tied":
            second.add(x[:real].t() @ x[:real])
        else:
            second.add(torch.stack([grid.round(r_j[:, None] * x).t() @ x for r_j in r]))
        likelihood = (top + norm.log()).double()[:real]
        total.add(LOG_LIKELIHOODS.round(likelihood).sum())
    return EMStatistics(mass, first, second, total, len(points))


def _log_joint(mixture: GaussianMixture) -> Callable[[torch.Tensor], torch.Tensor]:
    """(B, p) float32 block -> (k, B) log pi_j + log N(x; mu_j, Sigma_j)."""
    weights = torch.from_numpy(mixture.weights)
    means = torch.from_numpy(mixture.means)
    covariances = torch.from_numpy(np.ascontiguousarray(mixture.covariances))
    width = means.shape[1]
    constant = weights.log() - 0.5 * width * np.log(2 * np.pi)
    if mixture.covariance_type == "diag":
        precision = 1 / covariances
        constant = constant + 0.5 * (precision.log() - means.square() * precision).sum(1)
        narrow = float(precision.sum(1).max()) > _FLOAT32_PRECISION_SUM
        dtype = torch.float64 if narrow else torch.float32
        linear, quadratic = (means * precision).to(dtype), (-0.5 * precision).to(dtype)
        offset = constant[:, None].to(dtype)

        def diagonal(block: torch.Tensor) -> torch.Tensor:
            x = block.to(dtype)
            return torch.addmm(torch.addmm(offset, linear, x.t()), quadratic, (x * x).t())

        return diagonal
    lower = torch.linalg.cholesky(covariances)
    eye = torch.eye(width, dtype=torch.float64)
    inverse = torch.linalg.solve_triangular(lower, eye, upper=False)
    constant = constant - lower.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    whiten = inverse.expand(len(means), width, width)

    def dense(block: torch.Tensor) -> torch.Tensor:
        x = block.double().t()
        rows = [
            c - 0.5 * (w @ (x - m[:, None])).square().sum(0)
            for c, w, m in zip(constant, whiten, means, strict=True)
        ]
        return torch.stack(rows)

    return dense


def update(
    found: EMStatistics, mixture: GaussianMixture, frame: Frame, reg_covar: float
) -> GaussianMixture:
    """M-step. `reg_covar` is in squared units of the embeddings, as scikit-learn's."""
    mass = found.mass.value() + 10 * np.finfo(np.float64).eps
    means = found.first.value() / mass[:, None]
    reg = np.ldexp(reg_covar, -2 * frame.exponents)
    second = found.second.value()
    if mixture.covariance_type == "diag":
        covariances = second / mass[:, None] - np.square(means) + reg
    elif mixture.covariance_type == "tied":
        covariances = (second - (mass * means.T) @ means) / mass.sum() + np.diag(reg)
    else:
        outer = means[:, :, None] * means[:, None, :]
        second = 0.5 * (second + np.swapaxes(second, 1, 2))
        covariances = second / mass[:, None, None] - outer + np.diag(reg)
    return replace(
        mixture, weights=mass / mass.sum(), means=means, covariances=np.asarray(covariances)
    )


def refine(
    expect: Callable[[GaussianMixture], EMStatistics],
    start: GaussianMixture,
    frame: Frame,
    *,
    iterations: int,
    tolerance: float,
    reg_covar: float,
    history: tuple[float, ...] = (),
    checkpoint: Callable[[GaussianMixture, tuple[float, ...]], None] = lambda mixture, history: (
        None
    ),
) -> tuple[GaussianMixture, tuple[float, ...]]:
    """EM from `start` until the mean log-likelihood rises by less than `tolerance` nats a point.

    Args:
        expect: totals over all points for a mixture in the frame's coordinates.
        start: in the frame's coordinates.
        iterations: most updates, those of `history` included.
        history: mean log-likelihoods before `start`, when an interrupted run goes on.
        checkpoint: told the mixture and the history before each E-step.

    Returns:
        The mixture in the frame's coordinates, its log-likelihood, iterations and convergence set,
        and the mean log-likelihood at each E-step, the last one with the mixture itself.
    """
    mixture = start
    while True:
        checkpoint(mixture, history)
        found = expect(mixture)
        history = (*history, float(found.log_likelihood.value()) / found.rows)
        converged = len(history) > 1 and history[-1] - history[-2] < tolerance
        if converged or len(history) > iterations:
            done = replace(
                mixture,
                log_likelihood=history[-1],
                num_iterations=len(history) - 1,
                converged=converged,
            )
            return done, history
        mixture = update(found, mixture, frame, reg_covar)
