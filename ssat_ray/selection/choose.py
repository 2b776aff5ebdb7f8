"""The exact balanced choice: the lowest scores, and a uniform sample of everything else."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ssat_ray.selection.scores import Array, Int64, random_score

REASONS = ("boundary", "random")
"""What the codes in `Choice.reason` mean, by position."""

_MAX_TIED_SHARE = 0.01
# Keeps the remainder's draw independent of the `random` selector's scores at the same seed.
_REMAINDER_STREAM = 0x52454D41494E4452

Bool = npt.NDArray[np.bool_]


class DegenerateScoreError(ValueError):
    """The scores cannot rank the pool: not a number, or too many equal ones at the cut."""


@dataclass(frozen=True, eq=False)
class Choice:
    """A selection of n pool points.

    Attributes:
        ids: (n,) int64, ascending.
        reason: (n,) int8 indices into `REASONS`.
        cut: the largest score chosen for the boundary part; -inf if that part is empty.
        num_tied_at_cut: pool points that share the cut's score with another one (0 if it is
            unique); with per-class quotas, summed over the classes' own cuts.
    """

    ids: Int64
    reason: npt.NDArray[np.int8]
    cut: float
    num_tied_at_cut: int


def choose(
    ids: Array,
    score: Array,
    *,
    ratio: float,
    boundary_fraction: float,
    seed: int,
    labels: Array | None = None,
    per_class: bool = False,
    method: str = "",
) -> Choice:
    """Takes n = round(ratio N) points: round(boundary_fraction n) lowest scores, the rest random.

    Ties go by id. The rest is uniform without replacement over all remaining points: those with
    the smallest hash of (id, seed). The result does not depend on the order of the rows. With
    `per_class`, n and the boundary part are shared out in proportion to the class sizes by
    largest remainder (ties to the smaller label), and both parts are drawn within each class.

    Args:
        ids: (N,) integers, unique.
        score: (N,) floats, lower = nearer the boundary.
        ratio: share of the pool to take, in (0, 1].
        boundary_fraction: share of n taken by score, in [0, 1].
        seed: of the random part.
        labels: (N,) class indices >= 0; needed with `per_class` only.
        per_class: whether to keep the pool's class proportions.
        method: the selector's name, for errors.

    Raises:
        DegenerateScoreError: a NaN, or more than 1 % of the pool tied at the cut.
        ValueError: shapes, `select.ratio`, `select.boundary_fraction`, duplicate ids, n < 1, or
            missing labels.

    Source: arXiv 2501.10466, LCS with a balanced share of other points.
    """
    ids, score = np.asarray(ids), np.asarray(score)
    _check(ids, score, ratio, boundary_fraction, method)
    order = np.argsort(ids)
    ids, score = ids[order].astype(np.int64), score[order]
    if (ids[1:] == ids[:-1]).any():
        duplicate = int(ids[1:][ids[1:] == ids[:-1]][0])
        raise ValueError(f"{_name(method)}: pool ids must be unique, found {duplicate} twice")
    n = round(ratio * len(ids))
    if n < 1:
        raise ValueError(
            f"{_name(method)}: select.ratio {ratio} of {len(ids)} points is no point; raise it"
        )
    groups = [np.arange(len(ids))]
    if per_class:
        groups = _class_rows(labels, order, method)
    quotas = _share_out(n, [len(rows) for rows in groups])
    boundary_quotas = _share_out(round(boundary_fraction * n), quotas)
    hashes = random_score(ids, seed ^ _REMAINDER_STREAM)
    reason = np.full(len(ids), -1, np.int8)
    cut, num_tied = -np.inf, 0
    for rows, quota, num_boundary in zip(groups, quotas, boundary_quotas, strict=True):
        boundary = _lowest(score[rows], num_boundary)
        reason[rows[boundary]] = REASONS.index("boundary")
        remaining = rows[~boundary]
        drawn = _lowest(hashes[remaining], quota - num_boundary)
        reason[remaining[drawn]] = REASONS.index("random")
        if num_boundary:
            group_cut = score[rows[boundary]].max()
            same = int((score[rows] == group_cut).sum())
            num_tied += same if same > 1 else 0
            cut = max(cut, float(group_cut))
    if num_tied > _MAX_TIED_SHARE * len(ids):
        raise DegenerateScoreError(
            f"{_name(method)}: {num_tied} of {len(ids)} points tie at the cut (score {cut:g}), more"
            f" than {_MAX_TIED_SHARE:.0%}, so the score ranks too little; use another selector,"
            " layer or clustering"
        )
    chosen = reason >= 0
    return Choice(ids[chosen], reason[chosen], float(cut), num_tied)


def _check(ids: Array, score: Array, ratio: float, boundary_fraction: float, method: str) -> None:
    if ids.ndim != 1 or ids.shape != score.shape or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(
            f"{_name(method)}: ids and score must be (N,), ids integers; found {ids.dtype} "
            f"{ids.shape} and {score.shape}"
        )
    if not 0 < ratio <= 1:
        raise ValueError(f"{_name(method)}: select.ratio must be in (0, 1], found {ratio}")
    if not 0 <= boundary_fraction <= 1:
        raise ValueError(
            f"{_name(method)}: select.boundary_fraction must be in [0, 1], "
            f"found {boundary_fraction}"
        )
    num_nan = int(np.isnan(score).sum())
    if num_nan:
        raise DegenerateScoreError(
            f"{_name(method)}: {num_nan} of {len(score)} scores are NaN; check the embeddings and "
            "the clustering"
        )


def _name(method: str) -> str:
    return f"selector {method!r}" if method else "selection"


def _class_rows(labels: Array | None, order: Int64, method: str) -> list[Int64]:
    """Row indices of each class, ascending by label, into the arrays sorted by `order`."""
    if labels is None or np.shape(labels) != order.shape:
        found = "none" if labels is None else np.shape(labels)
        raise ValueError(
            f"{_name(method)}: select.per_class needs one label a point ({order.shape}), "
            f"found {found}"
        )
    labels = np.asarray(labels)[order]
    if (labels < 0).any():
        raise ValueError(
            f"{_name(method)}: select.per_class needs a label for every point, found "
            f"{int((labels < 0).sum())} without one; use pseudo-labels"
        )
    by_label = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[by_label])) + 1
    return np.split(by_label, starts)


def _share_out(total: int, sizes: list[int]) -> list[int]:
    """Splits `total` <= sum(sizes) in proportion to `sizes`, by largest remainder, exactly."""
    whole = sum(sizes)
    shares = [total * size // whole for size in sizes]
    remainders = [total * size % whole for size in sizes]
    largest = sorted(range(len(sizes)), key=lambda i: (-remainders[i], i))
    for i in largest[: total - sum(shares)]:
        shares[i] += 1
    return shares


def _lowest(values: Array, count: int) -> Bool:
    """(M,) mask of the `count` smallest values, the earlier position on ties, in O(M)."""
    if count == 0:
        return np.zeros(len(values), np.bool_)
    cut = np.partition(values, count - 1)[count - 1]
    mask = np.asarray(values < cut, np.bool_)
    mask[np.flatnonzero(values == cut)[: count - int(mask.sum())]] = True
    return mask
