"""Whether to cluster again: drifts of what was appended against limits of effect size, in words.

A difference counts if it is both large (an effect size above its limit, so that a shard of 250,000 rows
does not alarm over nothing) and significant (so that a shard of 200 rows does not alarm by chance).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ssat_ray.selection.drift import Drift

Status = Literal["stable", "watch", "re-cluster"]
STATUSES: tuple[Status, ...] = ("stable", "watch", "re-cluster")
EXIT_CODES: dict[Status, int] = {"stable": 0, "watch": 0, "re-cluster": 3}

_NUM_MEASURES = 4
_NAMED_SHARDS = 5


@dataclass(frozen=True)
class Thresholds:
    """Effect sizes from which to cluster again, and from what part of them to watch.

    Attributes:
        psi: of cluster shares and of score deciles, less its expectation; 0.2 and 0.1 are the customary
            limits of a major and a minor shift.
        ks: distance of the score's distribution functions; 0.2 is a shift by half a standard deviation
            of a normal distribution, which has a psi of 0.25.
        inertia: ratio of inertia per image to that at fit time, or of that to it; > 1.
        watch: part of the limits, in (0, 1], from which a shard is watched.
        significance: chance of a false alarm of the whole comparison: all rows, generations, shards and
            measures together.
    """

    psi: float = 0.2
    ks: float = 0.2
    inertia: float = 1.25
    watch: float = 0.5
    significance: float = 1e-3

    def __post_init__(self) -> None:
        allowed = {
            "psi": self.psi > 0,
            "ks": 0 < self.ks <= 1,
            "inertia": self.inertia > 1,
            "watch": 0 < self.watch <= 1,
            "significance": 0 < self.significance <= 1,
        }
        for name, fine in allowed.items():
            if not fine:
                raise ValueError(f"drift threshold {name} is out of range: {getattr(self, name)}")


@dataclass(frozen=True)
class Judgement:
    """One comparison: its status, and why in one sentence."""

    status: Status
    reason: str


@dataclass(frozen=True)
class Verdict:
    """The worst of all new rows together and of each generation, with each judgement in the order given."""

    status: Status
    reason: str
    together: Judgement
    generations: tuple[Judgement, ...]
    shards: tuple[Judgement, ...]

    @property
    def exit_code(self) -> int:
        """0 for stable and watch, 3 for re-cluster."""
        return EXIT_CODES[self.status]


def verdict(
    whole: Drift,
    generations: Mapping[int, Drift],
    shards: Sequence[Drift],
    thresholds: Thresholds | None = None,
) -> Verdict:
    """Whether to cluster again, given the drift of all new rows, of each new generation and shard.

    All rows together and each generation (by its number) can call for it: what was appended last may be
    a small part of the new rows. Shards cannot, as they may hold different classes and differ from one
    another in a pool that did not change. If only shards are not stable, they are to be watched.
    """
    thresholds = thresholds or Thresholds()
    alpha = thresholds.significance / (_NUM_MEASURES * (1 + len(generations) + len(shards)))
    together = _judge(whole, thresholds, alpha)
    batches = tuple(_judge(drift, thresholds, alpha) for drift in generations.values())
    judged = tuple(_judge(drift, thresholds, alpha) for drift in shards)
    named = {"All new rows together": together}
    named |= {f"Generation {g} alone": b for g, b in zip(generations, batches, strict=True)}
    name, worst = max(named.items(), key=lambda item: STATUSES.index(item[1].status))
    status, reason = worst.status, f"{name}: {worst.reason}"
    odd = [i for i, judgement in enumerate(judged) if judgement.status != "stable"]
    if status == "stable" and odd:
        names = ", ".join(map(str, odd[:_NAMED_SHARDS])) + (
            ", ..." if len(odd) > _NAMED_SHARDS else ""
        )
        status = "watch"
        reason = (
            f"All new rows together, and each generation, are like those at fit time, but {len(odd)} of "
            f"{len(shards)} new shards are not (number {names}): look whether shards are sorted, or some "
            "are damaged."
        )
    return Verdict(status, reason, together, batches, judged)


class _Finding(NamedTuple):
    part_of_limit: float
    p: float
    words: str


def _judge(drift: Drift, thresholds: Thresholds, alpha: float) -> Judgement:
    findings = _findings(drift, thresholds)
    counted = [f for f in findings if f.p < alpha and f.part_of_limit >= thresholds.watch]
    if not counted:
        largest = max(findings, key=lambda f: f.part_of_limit)
        return Judgement(
            "stable",
            f"No difference is both large and significant over {drift.num_rows:,} rows; "
            f"largest: {largest.words}.",
        )
    counted.sort(key=lambda f: -f.part_of_limit)
    beyond = [f for f in counted if f.part_of_limit >= 1]  # what is within its limit is no reason
    status: Status = "re-cluster" if beyond else "watch"
    words = "; ".join(f.words for f in beyond or counted)
    return Judgement(status, words[0].upper() + words[1:] + ".")


def _findings(drift: Drift, thresholds: Thresholds) -> list[_Finding]:
    psi, ratio = thresholds.psi, drift.inertia_ratio
    departure = max(ratio, 1.0 / ratio) - 1.0 if ratio > 0 else math.inf
    return [
        _Finding(
            departure / (thresholds.inertia - 1.0),
            drift.inertia_p,
            f"inertia per image is {ratio:.3g} times that at fit time (limit {thresholds.inertia:g}"
            f" or 1/{thresholds.inertia:g})",
        ),
        _Finding(
            drift.cluster_psi / psi,
            drift.cluster_p,
            f"cluster shares have a PSI of {drift.cluster_psi:.3f} (limit {psi:g}), most in cluster "
            f"{drift.moved}, from {drift.moved_from:.1%} to {drift.moved_to:.1%}",
        ),
        _Finding(
            drift.score_psi / psi,
            drift.score_p,
            f"score deciles have a PSI of {drift.score_psi:.3f} (limit {psi:g})",
        ),
        _Finding(
            drift.ks / thresholds.ks,
            drift.ks_p,
            f"the score's distribution functions differ by up to {drift.ks:.3f} (limit "
            f"{thresholds.ks:g})",
        ),
    ]
