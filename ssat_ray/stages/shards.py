"""Reading the shards of a job's pools: one numbering over several pools, retries, and quarantine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from ssat_ray.data.pool import Pool
from ssat_ray.data.shard import Shard, ShardEntry
from ssat_ray.errors import RunFailed, UserError
from ssat_ray.stages.base import StageContext, Task
from ssat_ray.store import Job

QUARANTINED = "quarantined"
_NAMED = 3
"""Most files that an error names."""
T = TypeVar("T")


class Pools:
    """The pools that a job reads (inputs `pool`, `pool.1`, …), their shards numbered through.

    Args:
        task: the job; without `on_bad_shard` in its configuration a bad shard fails it.
        kind: what its inputs are called.
    """

    def __init__(self, task: Task, kind: str = "pool") -> None:
        names = sorted((n for n in task.inputs if n.split(".")[0] == kind), key=generation)
        self.pools = [Pool(task.inputs[name]) for name in names]
        self._folder = task.folder
        self.on_bad_shard = task.job.config.get("on_bad_shard", "fail")
        self._where = [(pool, i) for pool in self.pools for i in range(len(pool.shards))]

    @classmethod
    def of(cls, job: Job, context: StageContext) -> Pools:
        return cls(Task.of(job, context.store))

    def __len__(self) -> int:
        """Number of shards."""
        return len(self._where)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        return self.pools[0].image_shape

    @property
    def num_images(self) -> int:
        return sum(map(len, self.pools))

    @property
    def num_bytes(self) -> int:
        return sum(pool.num_bytes for pool in self.pools)

    def entry(self, part: int) -> ShardEntry:
        pool, index = self._where[part]
        return pool.shards[index]

    def path(self, part: int) -> str:
        """Of the shard's file."""
        pool, index = self._where[part]
        return pool.shard_path(index)

    def read(self, part: int, retries: int) -> tuple[Shard | None, dict[str, Any]]:
        """A shard and what to note of it; no shard if it is quarantined.

        Raises:
            UserError: it could not be read, and `pool.on_bad_shard` is `fail`.
        """
        pool, index = self._where[part]
        return self._try(lambda: pool.read(index), pool, index, retries)

    def read_whole(self, part: int, retries: int) -> Shard:
        """A shard that must be there.

        Raises:
            UserError: it could not be read, whatever `pool.on_bad_shard` says.
        """
        return whole(*self.read(part, retries))

    def good(self, retries: int) -> tuple[list[int], list[dict[str, Any]]]:
        """The shards to use and, with `quarantine`, what is left out; that takes reading all of them."""
        if self.on_bad_shard == "fail":
            return list(range(len(self))), []
        notes = [self.read(part, retries)[1] for part in range(len(self))]
        bad = [note[QUARANTINED] for note in notes if note]
        return [part for part, note in enumerate(notes) if not note], bad

    def read_ids(self, part: int, retries: int) -> tuple[tuple[Any, Any] | None, dict[str, Any]]:
        """As `read`, for the ids and labels alone."""
        pool, index = self._where[part]
        return self._try(lambda: pool.read_ids(index), pool, index, retries)

    def _try(
        self, read: Callable[[], T], pool: Pool, index: int, retries: int
    ) -> tuple[T | None, dict[str, Any]]:
        for attempt in range(retries + 1):
            try:
                return read(), {}
            except (UserError, OSError) as error:
                reason = " ".join(str(error).split())
                if attempt < retries:
                    time.sleep(0.2 * 2**attempt)
        path, entry = pool.shard_path(index), pool.shards[index]
        reason = reason if path in reason else f"{path}: {reason}"
        if self.on_bad_shard == "fail":
            raise UserError(
                f"{reason} Tried {retries + 1} times. `ssat pool verify` lists all bad shards; "
                "pool.on_bad_shard=quarantine leaves them out; clusters and scores are then made anew."
            )
        return None, {QUARANTINED: {"file": entry["file"], "rows": entry["rows"], "reason": reason}}

    def account(self, label: str, notes: list[dict[str, Any]]) -> dict[str, Any]:
        """What to record of a job that read every shard: bytes, and the shards left out, if any.

        Raises:
            RunFailed: a shard's images are neither all in its part's rows nor left out.
        """
        bad = [note[QUARANTINED] for note in notes if QUARANTINED in note]
        found = [note["rows"] + note.get(QUARANTINED, {"rows": 0})["rows"] for note in notes]
        found += [0] * (len(self) - len(notes))
        wrong = [part for part in range(len(self)) if found[part] != self.entry(part)["rows"]]
        if wrong or sum(found) != self.num_images:
            named = ", ".join(f"{self.path(part)} ({found[part]} rows)" for part in wrong[:_NAMED])
            more = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
            raise RunFailed(
                f"{label}: the rows of {sum(found)} of {self.num_images} images are accounted for, not as "
                f"pool.json says: {named}{more}. Remove {self._folder} and run again."
            )
        return {"bytes_read": self.num_bytes, **({QUARANTINED: bad} if bad else {})}


def whole(found: T | None, note: dict[str, Any]) -> T:
    """What was read of a shard that could be read before."""
    if found is None:
        raise UserError(
            f"{note[QUARANTINED]['reason']} It was whole when its pool was read before; restore it and "
            "run again."
        )
    return found


def left_out_warnings(records: Iterable[tuple[str, dict[str, Any]]]) -> list[str]:
    """A sentence for each record, given with its job's label, that left shards out."""
    found = []
    for label, record in records:
        bad = record.get(QUARANTINED, [])
        if bad:
            shards = "1 shard" if len(bad) == 1 else f"{len(bad):,} shards"
            images = sum(shard["rows"] for shard in bad)
            found.append(f"{label}: {shards} with {images:,} images could not be read, left out")
    return found


def generation(name: str) -> int:
    """The number in an input's name: `pool` 0, `pool.1` 1."""
    return int(name.partition(".")[2] or 0)
