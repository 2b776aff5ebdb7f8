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

from ssat_ray.selection.exact import ExactSum, Grid, add_product
from ssat_ray.selection.gmm import GaussianMixture
from ssat_ray.selection.points import MOST_BLOCK_ROWS, Frame, block_rows, blocks
from ssat_ray.selection.scores import Float64

POINT_BITS = 21
"""Bits of the points' grid: with RESPONSIBILITIES and _GROUP_ROWS within float64's 53."""
RESPONSIBILITIES = Grid(-18, 18)
LOG_LIKELIHOODS = Grid(-24, 40)
_GROUP_ROWS = 2 * MOST_BLOCK_ROWS
"""Most rows whose sums float64 takes before they go into an ExactSum; points beyond the grid's range
make squares that overflow there, and raise, before any other sum is rounded."""
_NEGLIGIBLE = -60.0
"""Log-responsibility that rounds to 0: far lower ones would be denormal numbers, which are slow."""
_LEAST_LOG_LIKELIHOOD = -(2.0**15)
"""Nats that count for a point that is less likely: a group's sum then fits LOG_LIKELIHOODS."""
_FLOAT32_PRECISION_SUM = 2.0**14
_SQUARE_UNITS = 2.0**7
"""Smallest variance, in units of the rounded squares, that they leave accurate to half a percent."""


@dataclass(frozen=True, eq=False)
class EMStatistics:
    """Totals over points x with responsibilities r.

    Attributes:
        mass: sum r, (k,).
        first: sum r x, (k, p).
        second: sum r x^2 (k, p) for 'diag'; sum r x x^T (k, p, p) for 'full'; sum x x^T (p, p) for 'tied'.
        log_likelihood: sum log p(x), nats, each at least -32,768.
        rows: number of points.
        rest: what rounding took from the terms of `second`, in its shape: always for 'full', for 'diag'
            where it matters.
    """

    mass: ExactSum
    first: ExactSum
    second: ExactSum
    log_likelihood: ExactSum
    rows: int
    rest: ExactSum | None = None

    def merge(self, other: EMStatistics) -> EMStatistics:
        """The totals over both holders' points; changes self's sums."""
        for name in ("mass", "first", "second", "log_likelihood"):
            getattr(self, name).merge(getattr(other, name))
        if self.rest is not None and other.rest is not None:
            self.rest.merge(other.rest)
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

    The diagonal E-step runs in float32 while its rounding stays near 1e-3 nats a point. For narrower
    components it runs in float64, and what rounding takes from the squares is summed too.
    """
    kind = mixture.covariance_type
    num_components, width = mixture.means.shape
    squares = Grid(2 * grid.exponent + grid.bits, grid.bits)
    shape, terms = {
        "diag": ((num_components, width), RESPONSIBILITIES.times(squares)),
        "full": ((num_components, width, width), grid.times(grid)),
        "tied": ((width, width), grid.times(grid)),
    }[kind]
    group_rows = min(_GROUP_ROWS, terms.block_rows, RESPONSIBILITIES.times(grid).block_rows)
    mass = ExactSum((num_components,), RESPONSIBILITIES)
    first = ExactSum((num_components, width), RESPONSIBILITIES.times(grid))
    second = ExactSum(shape, terms)
    total = ExactSum((), LOG_LIKELIHOODS)
    log_joint = _Diagonal(mixture, squares.unit) if kind == "diag" else _Dense(mixture)
    rest = None
    if kind == "full" or (isinstance(log_joint, _Diagonal) and log_joint.narrow):
        rest = ExactSum(shape, RESPONSIBILITIES.times(Grid(2 * grid.exponent, grid.bits)))
    group_rows -= group_rows % log_joint.rows  # only the last block is padded
    r = torch.empty(num_components, log_joint.rows, dtype=torch.float64)
    x, square, rounded = torch.empty(3, log_joint.rows, width, dtype=torch.float64)
    for group in points.split(group_rows):
        masses, likelihood = torch.zeros(num_components, dtype=torch.float64), 0.0
        firsts, seconds = np.zeros((num_components, width)), np.zeros(shape)
        rests = np.zeros(shape)
        for rows, block in blocks(group, log_joint.rows):
            real = rows.stop - rows.start
            posterior, log_p = _posterior(log_joint(block))
            r.copy_(RESPONSIBILITIES.round_(posterior))[:, real:] = 0
            masses += r.sum(1)
            add_product(firsts, r, x.copy_(block))
            if isinstance(log_joint, _Diagonal):
                whole = log_joint.square
                if rest is not None:
                    square.copy_(whole).sub_(squares.round_(whole))
                    add_product(rests, r, square)
                    add_product(seconds, r, whole)
                else:
                    add_product(seconds, r, square.copy_(squares.round_(whole)))
            elif kind == "tied":
                add_product(seconds, x[:real].t(), x[:real])
            else:
                for target, left, r_j in zip(seconds, rests, r, strict=True):
                    torch.mul(r_j[:, None], x, out=square)
                    grid.round_(rounded.copy_(square))
                    add_product(target, rounded.t(), x)
                    add_product(left, square.sub_(rounded).t(), x)
            log_p = log_p[:real].double().clamp_(min=_LEAST_LOG_LIKELIHOOD)
            likelihood += float(LOG_LIKELIHOODS.round_(log_p).sum())
        mass.add(masses)
        first.add(firsts)
        second.add(seconds)
        if rest is not None:
            rest.add(rests)
        total.add(np.array(likelihood))
    return EMStatistics(mass, first, second, total, len(points), rest)


def _posterior(joint: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """log p(x, j) (k, B) -> p(j | x) in its place, and log p(x) (B,)."""
    top = joint.amax(0)
    norm = joint.sub_(top).clamp_(min=_NEGLIGIBLE).exp_().sum(0)
    return joint.div_(norm), top.add_(norm.log_())


class _Diagonal:
    """(B, p) blocks -> (k, B) log pi_j + log N(x; mu_j, diag), in a buffer it reuses.

    Attributes:
        rows: B.
        square: (B, p) x^2 of the last block.
        narrow: whether float32, or squares rounded to multiples of `square_unit`, would be too coarse
            for some component; everything is float64 then.
    """

    def __init__(self, mixture: GaussianMixture, square_unit: float) -> None:
        k, width = mixture.means.shape
        precision = 1 / mixture.covariances
        squares = (np.square(mixture.means) * precision).sum(1)
        constant = _log_weights(mixture) + 0.5 * (np.log(precision).sum(1) - squares)
        least = _SQUARE_UNITS * square_unit
        self.narrow = bool(
            precision.sum(1).max() > _FLOAT32_PRECISION_SUM or mixture.covariances.min() < least
        )
        self._dtype = torch.float64 if self.narrow else torch.float32
        self._constant, self._linear, self._quadratic = (
            torch.from_numpy(a).to(self._dtype)
            for a in (constant[:, None], mixture.means * precision, -0.5 * precision)
        )
        self.rows = block_rows(12 * k + 20 * width)
        self.square = torch.empty(self.rows, width, dtype=self._dtype)
        self._joint = torch.empty(k, self.rows, dtype=self._dtype)

    def __call__(self, block: torch.Tensor) -> torch.Tensor:
        x = block.to(self._dtype)
        torch.mul(x, x, out=self.square)  # first: it reads memory in order
        torch.addmm(self._constant, self._linear, x.t(), out=self._joint)
        return self._joint.addmm_(self._quadratic, self.square.t())


class _Dense:
    """The same for tied and full covariances, in float64."""

    def __init__(self, mixture: GaussianMixture) -> None:
        k, width = mixture.means.shape
        self._tied = mixture.covariance_type == "tied"
        lower = np.linalg.cholesky(mixture.covariances.reshape(-1, width, width))
        self._whiten = torch.from_numpy(np.linalg.inv(lower))
        self._means = torch.from_numpy(mixture.means)
        log_det = np.log(np.diagonal(lower, axis1=1, axis2=2)).sum(1)
        self._constant = torch.from_numpy(_log_weights(mixture) - log_det)
        self.rows = min(MOST_BLOCK_ROWS // 2, block_rows(24 * k + 24 * width))

    def __call__(self, block: torch.Tensor) -> torch.Tensor:
        x = block.double().t()
        if self._tied:
            mean = self._means.mean(0)  # centred, so that little cancels in the expanded squares
            y = self._whiten[0] @ (x - mean[:, None])
            centres = (self._means - mean) @ self._whiten[0].t()
            constant = self._constant - 0.5 * centres.square().sum(1)
            joint = torch.addmm(constant[:, None], centres, y)
            return joint.sub_(y.square_().sum(0), alpha=0.5)
        rows = [
            c - 0.5 * (w @ (x - m[:, None])).square_().sum(0)
            for c, w, m in zip(self._constant, self._whiten, self._means, strict=True)
        ]
        return torch.stack(rows)


def _log_weights(mixture: GaussianMixture) -> Float64:
    """(k,) the terms of the log-densities that are the same for every kind of covariance."""
    with np.errstate(divide="ignore"):
        return np.log(mixture.weights) - 0.5 * mixture.means.shape[1] * np.log(2 * np.pi)


def update(
    found: EMStatistics, mixture: GaussianMixture, frame: Frame, reg_covar: float
) -> GaussianMixture:
    """M-step. `reg_covar` is in squared units of the embeddings, as scikit-learn's."""
    mass = found.mass.value() + 10 * np.finfo(np.float64).eps
    means = found.first.value() / mass[:, None]
    reg = np.ldexp(reg_covar, -2 * frame.exponents)
    second = found.second.value()
    if found.rest is not None:
        second = second + found.rest.value()
    if mixture.covariance_type == "diag":
        spread = second / mass[:, None] - np.square(means)
        covariances = np.maximum(spread, 0) + reg  # rounding may leave a collapsed one below 0
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
