"""select: lowest scores and a random rest, written as a pool of the same images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from ssat_ray.data.pool import Pool
from ssat_ray.stages.select import TABLE

pytestmark = pytest.mark.ray


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


def test_random_has_only_random_reasons(tiny_run: Any, folder: Any) -> None:
    table = pq.read_table(folder(tiny_run, "random", "select") / TABLE)
    assert set(table["reason"].to_pylist()) == {"random"}
    assert len(set(table["id"].to_pylist())) == 100


def test_selection_is_a_pool_of_the_same_images(tiny_run: Any, folder: Any) -> None:
    full = Pool(folder(tiny_run, "full", "pool")).load()
    chosen = Pool(folder(tiny_run, "lcs-km", "select")).load()
    assert np.array_equal(chosen.images, full.images[chosen.ids])
    assert np.array_equal(chosen.labels, full.labels[chosen.ids])


def test_the_random_row_is_not_the_remainder_of_the_others(tiny_run: Any, folder: Any) -> None:
    """100 of 500 at random and the 60 of another row's remainder share about 12 images, not 60."""
    table = pq.read_table(folder(tiny_run, "lcs-km", "select") / TABLE)
    reasons = np.array(table["reason"].to_pylist())
    remainder = set(table["id"].to_numpy()[reasons == "random"].tolist())
    random = set(pq.read_table(folder(tiny_run, "random", "select") / TABLE)["id"].to_pylist())
    assert len(remainder) == 60
    assert len(remainder & random) < 30
