"""Drift of a growing pool: what score tables were like at fit time, and how new shards differ.

Compared are the inertia per image, the shares of the clusters and the distribution of the score. All are
gathered by streaming over columns of the score table, so images and embeddings are not read again.

Shape legend: N rows, k clusters or components, Q stored quantiles.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ssat_ray.selection.divergence import (
    expected_psi,
    group_rare,
    homogeneity_p,
    ks_p,
    ks_statistic,
    psi,
)
from ssat_ray.selection.scores import Array, Float64, Int64

Columns = Mapping[str, Array]

NUM_QUANTILES = 1001
_NUM_SCORE_BINS = 10
_FORMAT = 1


class ShardSummary:
    """What is kept of some rows of a score table; grows by `add` and `merge`.

    Args:
        edges: (Q,) float64 ascending scores, of the reference it will be compared with.
        num_clusters: k.
    """

    def __init__(self, edges: Float64, num_clusters: int) -> None:
        self.edges = edges
        self.num_rows = 0
        self.mean = 0.0
        """Of the inertia (or negative log-likelihood) of an image."""
        self.squares = 0.0
        """Sum of squared differences from the mean."""
        self.cluster_counts: Int64 = np.zeros(num_clusters, np.int64)
        self.score_counts: Int64 = np.zeros(2 * len(edges) + 1, np.int64)
        """Rows below, at, between, at, ... and above the edges."""

    def add(self, columns: Columns) -> None:
        """Take rows of a score table: `score`, `cluster`, and `d1` or `log_likelihood`, each (N,).

        Raises:
            ValueError: a column is missing, of another length, not finite, or a cluster is not in [0, k).
        """
        inertia, cluster, score = _checked(columns, len(self.cluster_counts))
        if not len(score):
            return
        block = ShardSummary(self.edges, len(self.cluster_counts))
        block.num_rows = len(score)
        block.mean = float(inertia.mean())
        block.squares = float(np.square(inertia - block.mean).sum())
        block.cluster_counts = np.bincount(cluster, minlength=len(self.cluster_counts))
        position = np.searchsorted(self.edges, score, "left")
        position += np.searchsorted(self.edges, score, "right")
        block.score_counts = np.bincount(position, minlength=len(self.score_counts))
        self.merge(block)

    def merge(self, other: ShardSummary) -> None:
        """Take the rows of another summary with the same edges and k."""
        if not np.array_equal(self.edges, other.edges) or len(self.cluster_counts) != len(
            other.cluster_counts
        ):
            raise ValueError("only summaries for one reference can be merged")
        total = self.num_rows + other.num_rows
        if not total:
            return
        step = other.mean - self.mean
        # Chan, Golub and LeVeque 1983: no cancellation, however the rows are cut.
        self.squares += other.squares + step * step * self.num_rows * other.num_rows / total
        self.mean += step * other.num_rows / total
        self.num_rows = total
        self.cluster_counts = self.cluster_counts + other.cluster_counts
        self.score_counts = self.score_counts + other.score_counts

    @property
    def variance(self) -> float:
        """Of the inertia of an image; 0 for a single row."""
        return self.squares / max(1, self.num_rows - 1)


@dataclass(frozen=True)
class Reference:
    """Score tables at fit time.

    Attributes:
        measure: `d1` if inertia is the mean of d1^2, `log_likelihood` if it is -log p(h) in nats.
        width: of the points that the mixture was fitted on; 0 for k-means.
        rows: summary of the rows; its edges are their own quantiles.
    """

    measure: str
    width: int
    rows: ShardSummary

    @classmethod
    def from_rows(cls, columns: Columns, num_clusters: int, *, width: int = 0) -> Reference:
        """From the score table's columns (all of it, or a uniform sample of 100,000 rows or more).

        Args:
            columns: `score`, `cluster`, and `d1` (k-means) or `log_likelihood` (mixture), each (N,).
            num_clusters: k.
            width: of the points that the mixture was fitted on; for `log_likelihood` only.

        Raises:
            ValueError: no rows, or columns as in `ShardSummary.add`; no width for a mixture.
        """
        measure = _measure(columns)
        if measure == "log_likelihood" and width < 1:
            raise ValueError("the reference of a mixture needs the width of its points")
        score = _checked(columns, num_clusters)[2]
        if not len(score):
            raise ValueError("the reference needs at least one row")
        # The smallest score that at least i / (Q - 1) of the rows do not exceed, in whole numbers.
        steps = NUM_QUANTILES - 1
        last = -(-np.arange(NUM_QUANTILES) * len(score) // steps) - 1
        edges = np.unique(np.sort(score)[np.maximum(last, 0)])
        rows = ShardSummary(edges, num_clusters)
        rows.add(columns)
        return cls(measure, width, rows)

    def summary(self) -> ShardSummary:
        """An empty summary for rows that are to be compared with this reference."""
        return ShardSummary(self.rows.edges, len(self.rows.cluster_counts))

    def to_json(self) -> dict[str, Any]:
        """Plain numbers; `from_json` gives the same reference, bit for bit."""
        rows = self.rows
        return {
            "format": _FORMAT,
            "measure": self.measure,
            "width": self.width,
            "rows": rows.num_rows,
            "mean": rows.mean,
            "squares": rows.squares,
            "cluster_counts": rows.cluster_counts.tolist(),
            "score_edges": rows.edges.tolist(),
            "score_counts": rows.score_counts.tolist(),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Reference:
        """Raises ValueError if `content` is not what `to_json` gives."""
        try:
            if content["format"] != _FORMAT:
                raise ValueError(f"format {content['format']}, this release reads {_FORMAT}")
            edges = np.array(content["score_edges"], np.float64)
            rows = ShardSummary(edges, len(content["cluster_counts"]))
            rows.num_rows = int(content["rows"])
            rows.mean, rows.squares = float(content["mean"]), float(content["squares"])
            rows.cluster_counts = np.array(content["cluster_counts"], np.int64)
            rows.score_counts = np.array(content["score_counts"], np.int64)
            measure, width = str(content["measure"]), int(content["width"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"no drift reference: {error!r}") from error
        for counts, size in (
            (rows.cluster_counts, len(rows.cluster_counts)),
            (rows.score_counts, 2 * len(edges) + 1),
        ):
            if counts.shape != (size,) or counts.sum() != rows.num_rows or not rows.num_rows:
                raise ValueError("no drift reference: its counts do not add up to its rows")
        return cls(measure, width, rows)


@dataclass(frozen=True)
class Drift:
    """How some rows differ from the reference. Each p is of the hypothesis that they do not.

    Attributes:
        num_rows: compared.
        inertia: per image, here; `reference_inertia` at fit time.
        inertia_ratio: their ratio; for a mixture the ratio of mean squared Mahalanobis distances that
            makes the same difference of log-likelihood, 1 + 2 difference / width.
        cluster_psi, score_psi: population stability index over the clusters and over the reference's
            score deciles, less `*_expected`, what rows of the same distribution have on average; so
            about 0 without drift, at any number of rows.
        ks: largest difference of the score's distribution functions; within 1 / (Q - 1) of exact.
        moved: the cluster that gained or lost most.
        moved_from, moved_to: its shares.
    """

    num_rows: int
    inertia: float
    reference_inertia: float
    inertia_ratio: float
    inertia_p: float
    cluster_psi: float
    cluster_psi_expected: float
    cluster_p: float
    score_psi: float
    score_psi_expected: float
    score_p: float
    ks: float
    ks_p: float
    moved: int
    moved_from: float
    moved_to: float


def compare(reference: Reference, shard: ShardSummary) -> Drift:
    """The drift of a shard's rows; raises ValueError if it has none or has other edges or k."""
    rows = reference.rows
    if not shard.num_rows:
        raise ValueError("a shard without rows cannot be compared")
    if not np.array_equal(rows.edges, shard.edges) or (
        rows.cluster_counts.shape != shard.cluster_counts.shape
    ):
        raise ValueError("the summary is for another reference")
    ratio, ratio_p = _inertia_ratio(reference, shard)
    group = group_rare(rows.cluster_counts, min(rows.num_rows, shard.num_rows))
    clusters = [
        np.bincount(group, weights=counts) for counts in (rows.cluster_counts, shard.cluster_counts)
    ]
    deciles = _decile_counts(rows.score_counts, rows.score_counts)
    scores = [deciles, _decile_counts(rows.score_counts, shard.score_counts)]
    ks = ks_statistic(rows.score_counts, shard.score_counts)
    before = rows.cluster_counts / rows.num_rows
    after = shard.cluster_counts / shard.num_rows
    moved = int(np.abs(after - before).argmax())
    expected = [expected_psi(*clusters), expected_psi(*scores)]
    return Drift(
        num_rows=shard.num_rows,
        inertia=shard.mean,
        reference_inertia=rows.mean,
        inertia_ratio=ratio,
        inertia_p=ratio_p,
        cluster_psi=psi(*clusters) - expected[0],
        cluster_psi_expected=expected[0],
        cluster_p=homogeneity_p(*clusters),
        score_psi=psi(*scores) - expected[1],
        score_psi_expected=expected[1],
        score_p=homogeneity_p(*scores),
        ks=ks,
        ks_p=ks_p(ks, rows.num_rows, shard.num_rows),
        moved=moved,
        moved_from=float(before[moved]),
        moved_to=float(after[moved]),
    )


def _inertia_ratio(reference: Reference, shard: ShardSummary) -> tuple[float, float]:
    """The ratio and the p-value of a z test of the difference of the means.

    The shard's variance counts as at least the reference's: inertia is skewed, and a small shard
    without its far points has a low mean and a far too low variance.
    """
    rows = reference.rows
    difference = shard.mean - rows.mean
    if reference.measure == "log_likelihood":
        ratio = 1.0 + 2.0 * difference / reference.width
    elif rows.mean:
        ratio = shard.mean / rows.mean
    else:
        ratio = math.inf if shard.mean else 1.0
    variance = max(rows.variance, shard.variance)
    error = math.sqrt(rows.variance / rows.num_rows + variance / shard.num_rows)
    if not error:
        return ratio, float(difference == 0)
    return ratio, math.erfc(abs(difference) / error / math.sqrt(2.0))


def _decile_counts(reference: Int64, counts: Int64) -> Int64:
    """Score counts in the bins between the reference's deciles; tied deciles make fewer bins."""
    at_edges = slice(1, None, 2)
    below = np.cumsum(reference)[at_edges]
    wanted = np.arange(1, _NUM_SCORE_BINS) * below[-1]
    cuts = np.unique(np.searchsorted(below * _NUM_SCORE_BINS, wanted))
    cumulative = np.cumsum(counts)
    return np.diff(np.concatenate([[0], cumulative[at_edges][cuts], cumulative[-1:]]))


def _measure(columns: Columns) -> str:
    for name in ("d1", "log_likelihood"):
        if name in columns:
            return name
    raise ValueError(
        f"drift needs the column d1 or log_likelihood, found {', '.join(columns)}; "
        "scores by confidence have no clusters"
    )


def _checked(columns: Columns, num_clusters: int) -> tuple[Float64, Int64, Float64]:
    """Inertia of each row, cluster and score, (N,) each."""
    measure = _measure(columns)
    missing = {"cluster", "score"} - set(columns)
    if missing:
        raise ValueError(f"drift needs the column(s) {', '.join(sorted(missing))}")
    values = np.asarray(columns[measure], np.float64)
    inertia = np.square(values) if measure == "d1" else -values
    cluster, score = np.asarray(columns["cluster"]), np.asarray(columns["score"], np.float64)
    if not inertia.shape == cluster.shape == score.shape or score.ndim != 1:
        raise ValueError(
            f"{measure}, cluster and score must be (N,), found {inertia.shape}, {cluster.shape} "
            f"and {score.shape}"
        )
    for name, column in ((measure, inertia), ("score", score)):
        bad = int((~np.isfinite(column)).sum())
        if bad:
            raise ValueError(f"{bad} of {len(column)} values of {name} are not finite")
    if len(cluster) and not 0 <= cluster.min() <= cluster.max() < num_clusters:
        raise ValueError(
            f"clusters must be in [0, {num_clusters}), found {cluster.min()} to {cluster.max()}"
        )
    return inertia, cluster.astype(np.int64), score
