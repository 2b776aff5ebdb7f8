"""Clusters, scores and selections are the same bits for any number of actors and any sharding (CPU)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from ssat_ray.selection.table import ScoreTable
from ssat_ray.stages.select import TABLE

pytestmark = pytest.mark.ray


@dataclass(frozen=True)
class Variant:
    """A way to compute the same thing; `resident_mib` below the embeddings' size leaves them on disk."""

    actors: int
    shard_rows: int
    resident_mib: int = 4096


def results(
    selections: Any,
    root: Path,
    num_images: int,
    rows: list[str],
    variant: Variant,
    *settings: str,
) -> dict[str, bytes]:
    """What must not differ: name -> bytes, the score tables sorted by id."""
    pool = selections.pool(root / "pool", num_images, variant.shard_rows)
    selection = selections.selection(
        root / "store",
        pool,
        f"rows=[{', '.join(rows)}]",
        f"cluster.sample_rows={num_images // 5}",
        f"cluster.refine_rows={num_images * 9 // 10}",
        "cluster.restarts=2",
        "select.dedup=true",
        f"runtime.actors={variant.actors}",
        f"runtime.resident_mib={variant.resident_mib}",
        *settings,
    )
    selection.execute()
    found: dict[str, bytes] = {}
    for row in rows:
        chosen = selection.folder(row, "select") / TABLE
        for name, column in columns(pq.read_table(chosen)).items():
            found[f"{row}: selected {name}"] = column
        if row == "random":
            continue
        files = ScoreTable.of_folders([selection.folder(row, "score")]).files
        assert len(files) == -(-num_images // variant.shard_rows)
        scores = {
            n: np.concatenate([pq.read_table(f)[n] for f in files])
            for n in pq.read_table(files[0]).column_names
        }
        order = np.argsort(scores["id"])
        assert np.array_equal(scores["id"][order], np.arange(num_images))
        found |= {f"{row}: score {n}": a[order].tobytes() for n, a in scores.items()}
        if row != "pcs":
            folder = selection.folder(row, "cluster")
            tensors = load_file(folder / "clusters.safetensors")
            found |= {f"{row}: clusters {n}": a.tobytes() for n, a in tensors.items()}
            found[f"{row}: clusters.json"] = (folder / "clusters.json").read_bytes()
    return found


def columns(table: Any) -> dict[str, bytes]:
    """Ids and reasons of a selection, sorted by id."""
    table = table.sort_by("id")
    reasons = "\n".join(table["reason"].to_pylist())
    return {"id": table["id"].to_numpy().tobytes(), "reason": reasons.encode()}


def assert_identical(expected: dict[str, bytes], found: dict[str, bytes], variant: Variant) -> None:
    assert expected.keys() == found.keys()
    differing = [name for name in expected if expected[name] != found[name]]
    assert not differing, f"{variant}: {differing}"


@pytest.mark.slow
def test_actors_and_shards_change_no_bit(selections: Any, ray_here: None, tmp_path: Path) -> None:
    """One actor, and two with shards of another size that read their embeddings from disk."""
    rows = ["lcs-km", "lcs-gmm"]
    first = Variant(actors=1, shard_rows=1_000)
    expected = results(selections, tmp_path / "0", 20_000, rows, first)
    assert len(expected) > 20
    other = Variant(2, 3_333, resident_mib=1)
    found = results(selections, tmp_path / "1", 20_000, rows, other)
    assert_identical(expected, found, other)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", [("tied", "null"), ("full", "null"), ("diag", "5"), ("tied", "5"), ("full", "5")]
)
def test_mixtures_of_every_kind(
    selections: Any, ray_here: None, tmp_path: Path, kind: tuple[str, str]
) -> None:
    """In memory with one actor, from disk with two and four: even 5 dimensions of the images that are refined on do
    not fit into 1 MiB. The diagonal one without a PCA is below."""
    num_images = 64_000
    assert num_images * 9 // 10 * 5 * 4 > 2**20
    settings = (f"cluster.covariance={kind[0]}", f"cluster.pca_dims={kind[1]}", "cluster.k=4")
    variants = [
        Variant(1, 4_000),
        Variant(2, 13_333, resident_mib=1),
        Variant(4, 9_001, resident_mib=1),
    ]
    found = [
        results(selections, tmp_path / str(i), num_images, ["lcs-gmm"], variant, *settings)
        for i, variant in enumerate(variants)
    ]
    shapes = {"diag": (4, 5), "tied": (16, 16), "full": (4, 16, 16)}
    if kind[1] != "null":
        shapes |= {"tied": (5, 5), "full": (4, 5, 5)}
        assert "lcs-gmm: clusters pca_components" in found[0]
    assert len(found[0]["lcs-gmm: clusters covariances"]) == 8 * np.prod(shapes[kind[0]])
    for variant, other in zip(variants[1:], found[1:], strict=True):
        assert_identical(found[0], other, variant)


@pytest.mark.slow
def test_every_row_is_the_same_for_all_variants(
    selections: Any, ray_here: None, tmp_path: Path
) -> None:
    rows, num_images = ["random", "pcs", "lcs-km", "lcs-gmm", "gmm-ll", "easy"], 300_000
    variants = [
        Variant(actors, shard_rows, resident_mib)
        for actors in (1, 2, 4)
        for shard_rows, resident_mib in ((20_000, 4096), (33_331, 1))
    ]
    expected: dict[str, bytes] = {}
    for i, variant in enumerate(variants):
        found = results(selections, tmp_path / str(i), num_images, rows, variant)
        expected = expected or found
        assert_identical(expected, found, variant)
