"""Selection scores, one convention for all of them: lower means nearer the decision boundary.

Shape legend: N points, d embedding width, k clusters or components, C classes.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ssat_ray.data.mix64 import hash_ids, unit

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

_BLOCK_ELEMENTS = 1 << 21  # float64 numbers in one temporary: 16 MiB
_HASH_ROWS = 1 << 15
_CANDIDATES = 3


def two_nearest(h: Array, centroids: Array) -> tuple[Float32, Float32, Int32]:
    """Distances to the nearest and the second nearest centroid, and the nearest one's index.

    A float32 matrix product shortlists three centroids, which are measured again by direct difference in
    float64. Where its rounding error could hide a fourth, a float64 product shortlists as many as could be
    among the two nearest. So the result is accurate for close pairs, does not depend on N or on the
    blocks, and nothing of shape (N, k, d) exists.

    Args:
        h: (N, d) float32 embeddings.
        centroids: (k, d) float32, k >= 2.

    Returns:
        d1 (N,) float32, d2 (N,) float32, cluster (N,) int32: Euclidean distances in the units of
        h, d1 <= d2; exact ties go to the lowest centroid index.

    Raises:
        ValueError: shapes do not fit, k < 2, or a value is not finite.
    """
    h, centroids = np.asarray(h, np.float32), np.asarray(centroids, np.float32)
    if h.ndim != 2 or centroids.ndim != 2 or h.shape[1] != centroids.shape[1]:
        raise ValueError(
            f"h must be (N, d) and centroids (k, d), found {h.shape} and {centroids.shape}"
        )
    if len(centroids) < 2:
        raise ValueError(f"a second nearest centroid needs k >= 2, found k = {len(centroids)}")
    if not np.isfinite(centroids).all():
        raise ValueError("centroids hold values that are not finite; fit them again")
    num_points, c = len(h), centroids.astype(np.float64)
    d1, d2 = np.empty(num_points, np.float32), np.empty(num_points, np.float32)
    cluster = np.empty(num_points, np.int32)
    shortlist = _Shortlist(centroids)
    for rows in _blocks(num_points, max(_CANDIDATES * 8 * h.shape[1], len(c))):
        x = h[rows].astype(np.float64)
        candidates, certain = shortlist(h[rows])
        squared = _squared_distances(x, c, candidates)
        index = np.arange(len(x))
        nearest = squared.argmin(axis=1)
        first, found = squared[index, nearest], candidates[index, nearest]
        squared[index, nearest] = np.inf
        second = squared.min(axis=1)
        for few in _split(np.flatnonzero(~certain), len(c)):
            wide = _shortlisted_squared_distances(x[few], c)
            index = np.arange(len(few))
            found[few] = wide.argmin(axis=1)
            first[few] = wide[index, found[few]]
            wide[index, found[few]] = np.inf
            second[few] = wide.min(axis=1)
        d1[rows], d2[rows], cluster[rows] = np.sqrt(first), np.sqrt(second), found
    return d1, d2, cluster


class _Shortlist:
    """(B, d) float32 rows -> (B, <= 3) indices of near centroids, ascending, and where no other can be
    among the two nearest (B,)."""

    def __init__(self, centroids: Float32) -> None:
        import torch  # which a selection from scores alone does without

        self._mean = torch.from_numpy(centroids.mean(axis=0, dtype=np.float64).astype(np.float32))
        self._c = torch.from_numpy(np.ascontiguousarray(centroids)) - self._mean
        self._half = 0.5 * self._c.square().sum(1)
        self._reach = float(self._half.max())

    def __call__(self, h: Float32) -> tuple[Int64, npt.NDArray[np.bool_]]:
        import torch

        x = torch.from_numpy(np.ascontiguousarray(h)) - self._mean
        halves = torch.addmm(self._half, x, self._c.t(), alpha=-1)  # of d^2 - |x|^2
        size = min(_CANDIDATES + 1, len(self._c))
        values, near = halves.topk(size, dim=1, largest=False)
        candidates = near[:, :_CANDIDATES].sort(dim=1).values.numpy()
        if size <= _CANDIDATES:
            certain = x.isfinite().all(dim=1)
        else:
            # |halves - exact| <= (d + 4) u (|x| |c| + |c|^2 / 2), u the unit roundoff; needed twice,
            # and once more for the rounding of x - mean.
            reach = x.square().sum(1).sqrt_().mul_((2 * self._reach) ** 0.5).add_(self._reach)
            slack = reach.mul_(4 * (x.shape[1] + 8) * torch.finfo(torch.float32).eps)
            certain = values[:, -1] > values[:, 1] + slack
        return candidates, certain.numpy()


def _squared_distances(x: Float64, c: Float64, candidates: Int64) -> Float64:
    """(B, m) squared distances of (B, d) rows to m candidates each, by direct difference."""
    squared = np.empty(candidates.shape)
    difference = np.empty_like(x)
    for column, indices in enumerate(candidates.T):
        np.take(c, indices, axis=0, out=difference, mode="clip")
        np.subtract(x, difference, out=difference)
        squared[:, column] = np.einsum("bd,bd->b", difference, difference)
    return squared


def _shortlisted_squared_distances(x: Float64, c: Float64) -> Float64:
    """(B, k) squared distances by direct difference for the two nearest, inf for the far ones."""
    c_squared = np.einsum("kd,kd->k", c, c)
    x_squared = np.einsum("bd,bd->b", x, x)
    approximate = x_squared[:, None] + c_squared - 2.0 * (x @ c.T)
    if not np.isfinite(approximate).all():
        raise ValueError("h holds embeddings that are not finite (or overflow when squared)")
    # |approximate - direct| <= 2 (d + 4) u (|x| + |c|)^2, u the unit roundoff; needed twice.
    reach = (np.sqrt(x_squared) + np.sqrt(c_squared.max())) ** 2
    slack = 2 * (x.shape[1] + 4) * np.finfo(np.float64).eps * reach
    second = np.partition(approximate, 1, axis=1)[:, 1]
    row, column = np.nonzero(approximate <= (second + slack)[:, None])
    squared = np.full(approximate.shape, np.inf)
    for pairs in _blocks(len(row), x.shape[1]):
        i, j = row[pairs], column[pairs]
        squared[i, j] = _squared_distances(x[i], c, j[:, None])[:, 0]
    return squared


def _split(rows: Int64, width: int) -> Iterator[Int64]:
    return (rows[block] for block in _blocks(len(rows), width))


def _blocks(num_rows: int, width: int) -> Iterator[slice]:
    """Slices over `num_rows` such that rows x width stays within one temporary."""
    size = max(1, _BLOCK_ELEMENTS // max(1, width))
    return (slice(start, start + size) for start in range(0, num_rows, size))


def kmeans_margin(d1: Array, d2: Array) -> Array:
    """Score `lcs-km`: d2 - d1 >= 0, (N,), in the units of h (arXiv 2501.10466)."""
    return np.asarray(d2 - d1)


def easy_score(d1: Array, d2: Array) -> Array:
    """Score `easy`: d1 - d2 <= 0, (N,): `lcs-km` reversed, the deepest points first."""
    return np.asarray(d1 - d2)


def logsumexp(a: Array) -> Float64:
    """log(sum(exp(a))) over the last axis, in float64; (..., k) -> (...); -inf entries count 0."""
    a = np.asarray(a, np.float64)
    top = a.max(axis=-1, keepdims=True)
    shift = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(np.exp(a - shift).sum(axis=-1)) + shift[..., 0], np.float64)


def confidence_score(logits: Array) -> Float64:
    """Score `pcs`: -log(1 - p_max), (N,) float64 nats; rises with the prediction's confidence.

    Ranks like max_y softmax(z)_y, from (N, C) logits, but goes on telling points apart where
    p_max rounds to 1. Raises ValueError if C < 2.
    """
    return np.asarray(np.logaddexp(0.0, _log_odds(logits)[0]), np.float64)


def top_confidence(logits: Array) -> tuple[Float64, Int64]:
    """(N, C) logits -> p_max (N,) float64 in [1/C, 1] and its class (N,) int64, lowest on ties."""
    log_odds, top = _log_odds(logits)
    return np.exp(-np.logaddexp(0.0, -log_odds)), top


def _log_odds(logits: Array) -> tuple[Float64, Int64]:
    """log(p_max / (1 - p_max)) (N,) and the argmax (N,)."""
    top, first, others = _split_top(logits, "logits", "C")
    return first - logsumexp(others), top


def _split_top(table: Array, name: str, width: str) -> tuple[Int64, Float64, Float64]:
    """Index and value of each row's maximum, and the table with that entry set to -inf."""
    others = np.array(table, np.float64)
    if others.ndim != 2 or others.shape[1] < 2:
        raise ValueError(f"{name} must be (N, {width}) with {width} >= 2, found {others.shape}")
    index = np.arange(len(others))
    top = others.argmax(axis=1).astype(np.int64)
    first = others[index, top]
    others[index, top] = -np.inf
    return top, first, others


def gmm_margin(log_joint: Array) -> tuple[Float64, Float64, Int32, Float64]:
    """Score `lcs-gmm`: l1 - l2 >= 0, the log-space gap of the two most likely components.

    Args:
        log_joint: (N, k), l_j = log pi_j + log N(h; mu_j, Sigma_j) in nats.

    Returns:
        l1, l2 (N,) float64, cluster (N,) int32 (lowest on ties), score = l1 - l2 (N,) float64.
        Posteriors would saturate at 1 and rank nothing (arXiv 2501.10466 states them).

    Raises:
        ValueError: k < 2.
    """
    top, l1, others = _split_top(log_joint, "log_joint", "k")
    l2 = others.max(axis=1)
    return l1, l2, top.astype(np.int32), l1 - l2


def gmm_log_likelihood(log_joint: Array) -> Float64:
    """Score `gmm-ll`: log p(h) = logsumexp_j l_j, (N, k) -> (N,) float64 nats, rarest first."""
    return logsumexp(log_joint)


def posterior_saturation(log_joint: Array, tol: float = 1e-6) -> float:
    """Share in [0, 1] of the points with p1 - p2 > 1 - tol, posteriors p in float64.

    Decided as (1 - p1) + p2 < tol, which does not round at 1. Raises ValueError if N = 0, k < 2.
    """
    if len(log_joint) == 0:
        raise ValueError("posterior_saturation needs at least one point, found N = 0")
    _, l1, others = _split_top(log_joint, "log_joint", "k")
    total = np.logaddexp(l1, logsumexp(others))
    rest = np.exp(logsumexp(others) - total) + np.exp(others.max(axis=1) - total)
    return float(np.mean(rest < tol))


def random_score(ids: Array, seed: int) -> Float64:
    """Score `random`: (N,) integer ids -> (N,) float64 uniform in [0, 1), a function of (id, seed).

    Output id + 1 of the SplitMix64 generator (Steele, Lea and Flood 2014) whose state is the
    mixed seed, so order and sharding do not matter. Raises ValueError for ids of another type.
    """
    ids = np.asarray(ids)
    score = np.empty(len(ids))
    for start in range(0, len(ids), _HASH_ROWS):  # blocks that stay in a core's cache
        block = slice(start, start + _HASH_ROWS)
        score[block] = unit(hash_ids(ids[block], seed))
    return score
