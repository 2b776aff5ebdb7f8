"""select: lowest scores and a random rest, written as a pool of the same images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from ssat_ray.data.pool import MANIFEST, Pool, manifest
from ssat_ray.data.shard import Shard, write_shard
from ssat_ray.errors import RunFailed
from ssat_ray.selection.choose import Choice
from ssat_ray.stages.base import Task
from ssat_ray.stages.select import TABLE, write_choice
from ssat_ray.stages.shards import Pools
from ssat_ray.store import Job


def even_ids(folder: Path) -> Pools:
    """A pool of two shards: ids 0, 2 … 8 and 20, 22 … 28."""
    rng, entries = np.random.default_rng(0), []
    for i in range(2):
        images = rng.integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)
        ids = 20 * i + 2 * np.arange(5)
        entries.append(write_shard(folder, i, Shard(ids, images, ids % 10)))
    (folder / MANIFEST).write_text(manifest([entries], (1, 8, 8), 10))
    job = Job("select", 1, {}, {"on_bad_shard": "fail"})
    return Pools(Task(job, folder, {"pool": folder}, folder))


def taken(folder: Path, ids: list[int]) -> list[int]:
    """What `write_choice` tells of its progress."""
    pools, told = even_ids(folder / "pool"), []
    task = Task(Job("select", 1, {}, {}), folder / "select", {}, folder)
    choice = Choice(np.array(ids), np.zeros(len(ids), np.int8), 0.0, 0, 0)
    assert write_choice(task, pools, choice, 0, told.append)["rows"] == len(ids)
    chosen, whole = Pool(task.folder).load(), Pool(folder / "pool").load()
    assert chosen.ids.tolist() == ids
    assert np.array_equal(chosen.images, whole.images[np.searchsorted(whole.ids, ids)])
    return told


def test_the_chosen_images_are_taken_shard_by_shard(tmp_path: Path) -> None:
    assert taken(tmp_path, [2, 8, 22, 24, 28]) == [2, 5]


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (
            [2, 5, 22],
            "shard-00000.parquet: 1 of the chosen images are not in it, the first has id 5",
        ),
        ([2, 12, 22], "select: 3 images are chosen and 2 of them are in the shards of .*pool"),
    ],
)
def test_a_chosen_image_that_is_in_no_shard_is_told(
    tmp_path: Path, ids: list[int], said: str
) -> None:
    with pytest.raises(RunFailed, match=said):
        taken(tmp_path, ids)


@pytest.mark.ray
@pytest.mark.parametrize("row", ["pcs", "lcs-km", "lcs-gmm", "gmm-ll", "easy"])
def test_selection_holds_the_lowest_scores(
    tiny_run: Any, row: str, folder: Any, scores: Any
) -> None:
    columns = scores(folder(tiny_run, row, "score"))
    score = {
        "easy": lambda c: c["d1"] - c["d2"],
        "gmm-ll": lambda c: c["log_likelihood"],
    }.get(row, lambda c: c["score"])(columns)
    table = pq.read_table(folder(tiny_run, row, "select") / TABLE)
    reasons = np.array(table["reason"].to_pylist())
    boundary = table["id"].to_numpy()[reasons == "boundary"]
    assert (len(table), len(boundary)) == (100, 40)
    lowest = columns["id"][np.lexsort((columns["id"], score))[:40]]
    assert set(boundary) == set(lowest)


@pytest.mark.ray
def test_random_has_only_random_reasons(tiny_run: Any, folder: Any) -> None:
    table = pq.read_table(folder(tiny_run, "random", "select") / TABLE)
    assert set(table["reason"].to_pylist()) == {"random"}
    assert len(set(table["id"].to_pylist())) == 100


@pytest.mark.ray
def test_selection_is_a_pool_of_the_same_images(tiny_run: Any, folder: Any) -> None:
    full = Pool(folder(tiny_run, "full", "pool")).load()
    chosen = Pool(folder(tiny_run, "lcs-km", "select")).load()
    assert np.array_equal(chosen.images, full.images[chosen.ids])
    assert np.array_equal(chosen.labels, full.labels[chosen.ids])


@pytest.mark.ray
def test_the_random_row_is_not_the_remainder_of_the_others(tiny_run: Any, folder: Any) -> None:
    """100 of 500 at random and the 60 of another row's remainder share about 12 images, not 60."""
    table = pq.read_table(folder(tiny_run, "lcs-km", "select") / TABLE)
    reasons = np.array(table["reason"].to_pylist())
    remainder = set(table["id"].to_numpy()[reasons == "random"].tolist())
    random = set(pq.read_table(folder(tiny_run, "random", "select") / TABLE)["id"].to_pylist())
    assert len(remainder) == 60
    assert len(remainder & random) < 30
