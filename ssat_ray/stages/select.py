"""select: the exact balanced choice over all score tables, written as a pool by streaming (a Ray task)."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from ssat_ray.board import board
from ssat_ray.config import SelectConfig
from ssat_ray.data.pool import MANIFEST, manifest
from ssat_ray.data.shard import Shard, image_hash, rows_a_shard, write_shards
from ssat_ray.errors import RunFailed, UserError
from ssat_ray.places import write_atomic
from ssat_ray.runtime import Meter, use_threads
from ssat_ray.selection.choose import REASONS, Choice, DegenerateScoreError, Ranking, choose
from ssat_ray.selection.clusters import score_of, score_reads
from ssat_ray.selection.table import ScoreTable
from ssat_ray.stages.base import Stage, StageContext, Task
from ssat_ray.stages.shards import QUARANTINED, Pools, generation, whole
from ssat_ray.store import Job

TABLE = "selection.parquet"
BINS = 80


@ray.remote(num_cpus=1, max_retries=3)
def _select(task: Task, retries: int) -> None:
    use_threads(1)
    with Meter() as meter:
        record = select(task, retries)
    task.publish({**record, "seconds": meter.seconds, "peak_pss_bytes": meter.peak_pss})


def select(task: Task, retries: int) -> dict[str, Any]:
    """Choose, write ids with reasons, and write the chosen images as a pool; returns what to record."""
    config, method = SelectConfig(**task.job.config["select"]), task.job.params["method"]
    pools = Pools(task)
    options: dict[str, Any] = {
        "ratio": config.ratio,
        "seed": task.seed,
        "per_class": config.per_class,
        "dedup": config.dedup,
        "method": method,
    }
    if method == "random":
        rows = _PoolRows(pools, retries)
        choice = choose(
            rows.read, num_rows=rows.num_rows, boundary_fraction=0.0, ranking=None, **options
        )
        num_rows, left_out, more = rows.num_rows, rows.quarantined, {}
    else:
        names = sorted((n for n in task.inputs if n.split(".")[0] == "score"), key=generation)
        table = ScoreTable.of_folders([task.inputs[name] for name in names])
        ranking = Ranking(tuple(score_reads(method)), lambda chunk: score_of(method, chunk))
        choice = choose(
            table.read,
            num_rows=table.num_rows,
            boundary_fraction=config.boundary_fraction,
            ranking=ranking,
            **options,
        )
        num_rows, left_out = table.num_rows, []
        more = {"histogram": _histogram(table, ranking)}
    posts = board()

    def post(taken: int) -> None:
        posts.post.remote(task.job.label, taken, len(choice.ids), "images")

    return {
        **write_choice(task, pools, choice, retries, post),
        **more,
        "of_rows": num_rows,
        **({"quarantined": left_out} if left_out else {}),
    }


def _histogram(table: ScoreTable, ranking: Ranking) -> dict[str, list[float]]:
    """Shares of the score over equal bins between the first chunk's extremes, its highest 0.5 % cut off.

    What lies outside counts in the first or the last bin.
    """
    counts, edges = np.zeros(BINS, np.int64), np.empty(0)
    for chunk in table.read(ranking.columns):
        score = ranking.score(chunk)
        if not len(edges):
            low, high = float(score.min()), float(np.quantile(score, 0.995))
            edges = np.linspace(low, max(high, low + 1e-6), BINS + 1)
        counts += np.histogram(np.clip(score, edges[0], edges[-1]), edges)[0]
    return {"edges": edges.tolist(), "shares": (counts / counts.sum()).tolist()}


class _PoolRows:
    """Ids and labels of the pools, and hashes of their images where they are asked for."""

    def __init__(self, pools: Pools, retries: int) -> None:
        self.pools, self.retries = pools, retries
        self.quarantined: list[dict[str, Any]] = []
        self._parts = []
        # an altered image shows in the checksum only, and must show before images are chosen
        read = pools.read if pools.on_bad_shard == "quarantine" else pools.read_ids
        for part in range(len(pools)):
            _, note = read(part, retries)
            if note:
                self.quarantined.append(note[QUARANTINED])
            else:
                self._parts.append(part)
        self.num_rows = sum(pools.entry(part)["rows"] for part in self._parts)

    def read(self, columns: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
        for part in self._parts:
            if "hash" in columns:
                shard = self.pools.read_whole(part, self.retries)
                found = {"id": shard.ids, "label": shard.labels, "hash": image_hash(shard.images)}
            else:
                ids, labels = whole(*self.pools.read_ids(part, self.retries))
                found = {"id": ids, "label": labels}
            yield {name: found[name] for name in columns}


def _chosen(
    pools: Pools, choice: Choice, retries: int, post: Callable[[int], None]
) -> Iterator[Shard]:
    """The chosen rows of each shard that has some."""
    taken = 0
    for part in range(len(pools)):
        entry = pools.entry(part)
        start, stop = np.searchsorted(choice.ids, (entry["first_id"], entry["last_id"] + 1))
        if start < stop:
            wanted, shard = choice.ids[start:stop], pools.read_whole(part, retries)
            rows = np.searchsorted(shard.ids, wanted)
            missing = wanted[shard.ids[rows] != wanted]
            if len(missing):
                raise RunFailed(
                    f"{pools.path(part)}: {len(missing)} of the chosen images are not in it, the first has "
                    f"id {missing[0]}."
                )
            taken += len(rows)
            yield shard[rows]
        post(taken)


def write_choice(
    task: Task, pools: Pools, choice: Choice, retries: int, post: Callable[[int], None]
) -> dict[str, Any]:
    """The chosen images as a pool, the ids with their reasons, and what to record of them.

    Args:
        post: is told how many images are taken, after each shard.

    Raises:
        RunFailed: a chosen id is in no shard.
    """
    first = pools.pools[0]
    chosen = _chosen(pools, choice, retries, post)
    entries = write_shards(task.folder, chosen, rows_a_shard(first.shape))
    taken = sum(entry["rows"] for entry in entries)
    if taken != len(choice.ids):
        places = ", ".join(str(pool.shards_in) for pool in pools.pools)
        raise RunFailed(
            f"{task.job.label}: {len(choice.ids)} images are chosen and {taken} of them are in the shards "
            f"of {places}."
        )
    buffer = io.BytesIO()
    reasons = pa.DictionaryArray.from_arrays(pa.array(choice.reason), pa.array(REASONS))
    pq.write_table(pa.table({"id": choice.ids, "reason": reasons}), buffer)
    write_atomic(task.folder / TABLE, buffer.getvalue())
    classes = max(pool.num_classes for pool in pools.pools)
    text = manifest([entries], first.image_shape, classes)
    write_atomic(task.folder / MANIFEST, text)
    return {
        "rows": taken,
        "boundary": int((choice.reason == REASONS.index("boundary")).sum()),
        "cut": choice.cut if math.isfinite(choice.cut) else None,
        "tied_at_cut": choice.num_tied_at_cut,
        "duplicates": choice.num_duplicates,
        "bytes_written": sum(e["bytes"] for e in entries),
        "bytes_read": pools.num_bytes,
    }


def run(jobs: list[Job], context: StageContext) -> None:
    failures: list[str] = []
    for job in jobs:  # one at a time: each row's seconds are its own
        try:
            ray.get(_select.remote(Task.of(job, context.store), context.runtime.read_retries))
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, RunFailed):
                raise error.cause from error
            if not isinstance(error.cause, DegenerateScoreError | ValueError | UserError):
                raise
            failures.append(f"{job.label}: {error.cause}")
    if failures:
        raise UserError(" ".join(failures))


STAGE = Stage("select", 3, run)
