"""The exact balanced choice: the lowest scores and a uniform sample of everything else, by streaming.

Every pass reads only its columns. A pass for the scores finds each group's cut (a group is a class, or
the whole pool), a second one takes the ids: no row's position or order need be kept. Peak memory is
4 bytes a row of the pool and about 40 a row chosen, plus a few chunks; finding duplicates
(duplicates.py) takes 13 bytes a row before that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
import numpy.typing as npt

from ssat_ray.selection.cuts import Bool, Cuts, Groups, split
from ssat_ray.selection.duplicates import find_duplicates
from ssat_ray.selection.scores import Array, Int64, random_score

REASONS = ("boundary", "random")
"""What the codes in `Choice.reason` mean, by position."""

Chunk = Mapping[str, Array]
Reader = Callable[[Sequence[str]], Iterator[Chunk]]
"""Column names -> chunks of consecutive rows, each column (n,); the same rows at every call."""

_MAX_TIED_SHARE = 0.01
# Keeps the remainder's draw independent of the `random` selector's scores at the same seed.
_REMAINDER_STREAM = 0x52454D41494E4452


class DegenerateScoreError(ValueError):
    """The scores cannot rank the pool: not a number, or too many equal ones at the cut."""


@dataclass(frozen=True)
class Ranking:
    """What ranks the pool: a score (n,), lower = nearer the boundary, computed from these columns."""

    columns: tuple[str, ...] = ("score",)
    score: Callable[[Chunk], Array] = itemgetter("score")


@dataclass(frozen=True, eq=False)
class Choice:
    """A selection of n pool points.

    Attributes:
        ids: (n,) int64, ascending.
        reason: (n,) int8 indices into `REASONS`.
        cut: the largest score (float32) chosen for the boundary part; -inf if that part is empty.
        num_tied_at_cut: pool points that share the cut's score with another one (0 if it is
            unique); with per-class quotas, summed over the classes' own cuts.
        num_duplicates: pool points left out as copies of one with a lower id.
    """

    ids: Int64
    reason: npt.NDArray[np.int8]
    cut: float
    num_tied_at_cut: int
    num_duplicates: int


def choose(
    read: Reader,
    *,
    num_rows: int,
    ratio: float,
    boundary_fraction: float,
    seed: int,
    ranking: Ranking | None,
    per_class: bool = False,
    dedup: bool = False,
    method: str = "",
) -> Choice:
    """Takes n = round(ratio N) points: round(boundary_fraction n) lowest scores, the rest random.

    Ties go by id. The rest is uniform without replacement over all remaining points: those with
    the smallest hash of (id, seed). The result does not depend on how the rows are cut into chunks.
    With `per_class`, n and the boundary part are shared out in proportion to the class sizes by
    largest remainder (ties to the smaller label), and both parts are drawn within each class.
    With `dedup`, copies are left out first: N, the class sizes and ties then count what remains.

    Args:
        read: the rows, ascending by `id` (int64, unique), in chunks. `label` (integer class
            indices) is read with `per_class` only, `hash` (uint64) with `dedup` only.
        num_rows: of all chunks together.
        ratio: share of the pool to take, in (0, 1].
        boundary_fraction: share of n taken by score, in [0, 1].
        seed: of the random part.
        ranking: scores, compared as float32. None: the `random` selector, all n points by the
            smallest `random_score` of (id, seed); boundary_fraction must be 0.
        per_class: whether to keep the pool's class proportions.
        dedup: whether to leave out rows whose hash occurs at a lower id.
        method: the selector's name, for errors.

    Raises:
        DegenerateScoreError: a NaN, or more than 1 % of the pool tied at the cut.
        ValueError: `select.ratio`, `select.boundary_fraction`, n < 1, ids that do not ascend,
            missing labels, or another number of rows than stated.

    Source: arXiv 2501.10466, LCS with a balanced share of other points.
    """
    name = f"selector {method!r}" if method else "selection"
    _check(ratio, boundary_fraction, ranking, name)
    duplicates = None
    if dedup:
        duplicates = find_duplicates((chunk["hash"] for chunk in read(["hash"])), num_rows)
    rows = _Rows(read, num_rows, per_class, duplicates, name)
    sizes = rows.group_sizes()
    n = round(ratio * sum(sizes))
    if n < 1:
        raise ValueError(
            f"{name}: select.ratio {ratio} of {sum(sizes)} points is no point; raise it"
        )
    quotas = _share_out(n, sizes)
    boundary_quotas = _share_out(round(boundary_fraction * n), quotas)
    scores = [np.empty(0, np.float32) for _ in sizes]
    if ranking is not None:
        scores = _scores_by_group(rows, sizes, ranking)
    cuts = Cuts.of(scores, boundary_quotas)
    del scores
    cut, num_tied = cuts.highest, cuts.num_tied
    if num_tied > _MAX_TIED_SHARE * sum(sizes):
        raise DegenerateScoreError(
            f"{name}: {num_tied} of {sum(sizes)} points tie at the cut (score {cut:g}), more than "
            f"{_MAX_TIED_SHARE:.0%}, so the score ranks too little; use another selector, layer or "
            "clustering"
        )
    hash_seed = seed if ranking is None else seed ^ _REMAINDER_STREAM
    taken = np.array(boundary_quotas)
    boundary, drawn = _take(
        rows, cuts, ranking, np.array(quotas) - taken, np.array(sizes) - taken, hash_seed
    )
    ids = np.concatenate([boundary, drawn])
    reason = np.repeat(np.arange(2, dtype=np.int8), [len(boundary), len(drawn)])
    order = np.argsort(ids, kind="stable")
    return Choice(ids[order], reason[order], cut, num_tied, num_rows - sum(sizes))


def _check(ratio: float, boundary_fraction: float, ranking: Ranking | None, name: str) -> None:
    if not 0 < ratio <= 1:
        raise ValueError(f"{name}: select.ratio must be in (0, 1], found {ratio}")
    if not 0 <= boundary_fraction <= 1:
        raise ValueError(
            f"{name}: select.boundary_fraction must be in [0, 1], found {boundary_fraction}"
        )
    if ranking is None and boundary_fraction > 0:
        raise ValueError(
            f"{name}: without scores there is no boundary part, so boundary_fraction must be 0, "
            f"found {boundary_fraction}"
        )


class _Rows:
    """The rows to choose from, chunk by chunk, with the group of each, checked as they pass."""

    def __init__(
        self, read: Reader, num_rows: int, per_class: bool, drop: Bool | None, name: str
    ) -> None:
        self._read, self._num_rows, self._per_class = read, num_rows, per_class
        self._drop, self.name = drop, name

    def chunks(self, columns: Sequence[str]) -> Iterator[tuple[Chunk, Groups]]:
        """Chunks, and the group of each row: 0, or (n,) labels with `per_class`."""
        names = list(dict.fromkeys([*columns, *(["label"] if self._per_class else [])]))
        stop, last = 0, None
        for chunk in self._read(names):
            if "id" in names:
                last = self._check_ids(chunk["id"], last)
            start, stop = stop, stop + len(chunk[names[0]])
            if stop > self._num_rows:
                break
            if self._drop is not None:
                keep = ~self._drop[start:stop]
                chunk = {name: chunk[name][keep] for name in names}
            yield chunk, chunk["label"] if self._per_class else 0
        if stop != self._num_rows:
            found = f"{stop} or more" if stop > self._num_rows else stop
            raise ValueError(f"{self.name}: expected {self._num_rows} rows, found {found}")

    def _check_ids(self, ids: Array, last: int | None) -> int | None:
        if not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"{self.name}: ids must be integers, found {ids.dtype}")
        if len(ids) == 0:
            return last
        wrong = np.flatnonzero(ids[1:] <= ids[:-1])
        pair = (last, int(ids[0])) if last is not None and ids[0] <= last else None
        if pair is None and len(wrong):
            pair = (int(ids[wrong[0]]), int(ids[wrong[0] + 1]))
        if pair is not None:
            raise ValueError(
                f"{self.name}: pool ids must ascend and be unique, found {pair[1]} after {pair[0]}"
            )
        return int(ids[-1])

    def group_sizes(self) -> list[int]:
        """Rows of each group; with `per_class` one for every label up to the largest."""
        if not self._per_class:
            dropped = 0 if self._drop is None else int(np.count_nonzero(self._drop))
            return [self._num_rows - dropped]
        sizes = np.zeros(0, np.int64)
        num_unlabelled = 0
        for chunk, _ in self.chunks([]):
            labels = chunk["label"]
            num_unlabelled += int(np.count_nonzero(labels < 0))
            if not num_unlabelled:
                counts = np.bincount(labels, minlength=len(sizes))
                counts[: len(sizes)] += sizes
                sizes = counts
        if num_unlabelled:
            raise ValueError(
                f"{self.name}: select.per_class needs a label for every point, found "
                f"{num_unlabelled} without one"
            )
        return [int(size) for size in sizes]


def _scores_by_group(rows: _Rows, sizes: list[int], ranking: Ranking) -> list[Array]:
    """The scores (size,) float32 of each group, in one block of memory; refuses NaN."""
    by_group = np.split(np.empty(sum(sizes), np.float32), np.cumsum(sizes)[:-1])
    filled, num_nan = [0] * len(sizes), 0
    for chunk, groups in rows.chunks(ranking.columns):
        score = np.asarray(ranking.score(chunk), np.float32)
        num_nan += int(np.count_nonzero(np.isnan(score)))
        for group, values in split(score, groups):
            by_group[group][filled[group] : filled[group] + len(values)] = values
            filled[group] += len(values)
    if num_nan:
        raise DegenerateScoreError(
            f"{rows.name}: {num_nan} of {sum(sizes)} scores are NaN; check the embeddings and the "
            "clustering"
        )
    return by_group


def _take(
    rows: _Rows, cuts: Cuts, ranking: Ranking | None, wanted: Array, remaining: Array, seed: int
) -> tuple[Int64, Int64]:
    """Ids of the boundary part and of the draw, each ascending.

    Hashes are uniform, so the smallest ones of a group are almost surely below a bound a little
    above the share wanted of what remains there. Only those are kept; if they do not suffice, the
    bound is raised and the rows are read again, so the draw is exact.
    """
    bounds = (wanted + 6 * np.sqrt(wanted) + 20) / np.maximum(remaining, 1)
    bounds[wanted == 0] = 0
    while True:
        boundary, ids, hashes, groups = _sweep(rows, cuts, ranking, bounds, seed)
        by_group = [np.empty(0) for _ in wanted]
        for group, values in split(hashes, groups):
            by_group[group] = values.copy()
        short = np.array([len(values) for values in by_group]) < wanted
        if not short.any():
            drawn = Cuts.of(by_group, wanted.tolist()).taker()(hashes, groups)
            return boundary, ids[drawn]
        bounds[short] *= 4


def _sweep(
    rows: _Rows, cuts: Cuts, ranking: Ranking | None, bounds: Array, seed: int
) -> tuple[Int64, Int64, Array, Groups]:
    """Ids of the boundary part; ids, hashes and groups of other rows with hashes below the bounds."""
    boundary, ids = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    hashes, groups = [np.empty(0)], [np.empty(0, np.int16)]
    take = cuts.taker()
    for chunk, group in rows.chunks(["id", *(ranking.columns if ranking else [])]):
        found = chunk["id"].astype(np.int64, copy=False)
        rest = np.ones(len(found), np.bool_)
        if ranking is not None:
            rest = ~take(np.asarray(ranking.score(chunk), np.float32), group)
            boundary.append(found[~rest])
        if bounds.any():
            hashed = random_score(found, seed)
            near = np.flatnonzero((hashed < bounds[group]) & rest)
            ids.append(found[near])
            hashes.append(hashed[near])
            if not isinstance(group, int):
                groups.append(group[near])
    of = 0 if len(groups) == 1 else np.concatenate(groups)
    return np.concatenate(boundary), np.concatenate(ids), np.concatenate(hashes), of


def _share_out(total: int, sizes: list[int]) -> list[int]:
    """Splits `total` <= sum(sizes) in proportion to `sizes`, by largest remainder, exactly."""
    whole = sum(sizes)
    shares = [total * size // whole for size in sizes]
    remainders = [total * size % whole for size in sizes]
    largest = sorted(range(len(sizes)), key=lambda i: (-remainders[i], i))
    for i in largest[: total - sum(shares)]:
        shares[i] += 1
    return shares
