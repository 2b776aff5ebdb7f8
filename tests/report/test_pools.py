"""What is said of pools, word by word."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ssat_ray.data.ingest import append_pool, import_pool
from ssat_ray.data.pool import Pool
from ssat_ray.report import pools

IMAGES = np.random.default_rng(0).integers(0, 256, (1200, 8, 8, 1), dtype=np.uint8)


def make(folder: Path, labels: object, **options: object) -> Pool:
    more = {} if labels is None else {"label": labels}
    np.savez(folder / "a.npz", image=IMAGES, **more)
    return import_pool([folder / "a.npz"], str(folder / "pool"), shard_rows=500, **options)[0]


SOME = np.where(np.arange(1200) < 12, -1, np.arange(1200) % 10)


@pytest.mark.parametrize(
    ("labels", "said", "warned"),
    [
        (abs(SOME), "10 classes", None),
        (
            SOME,
            "10 classes, 12 without a label",
            "warning: 12 of 1,200 images have no label (labels come from: array label)",
        ),
        (
            None,
            "none with a label",
            "warning: no image has a label (no array is called label, labels, y, target, targets, "
            "extrapolated_targets, arr_1; --label-key names one)",
        ),
    ],
)
def test_an_import(tmp_path: Path, labels: object, said: str, warned: str | None) -> None:
    pool = make(tmp_path, labels)
    assert pools.imported(pool) == (f"1,200 images of 8x8x1 imported, {said}; read as uint8 NHWC")
    assert pools.unlabelled_warning(pool) == warned


def test_an_append_tells_of_the_newest_generation(tmp_path: Path) -> None:
    make(tmp_path, SOME)
    np.savez(tmp_path / "b.npz", image=IMAGES[:7] / 255.0, label=np.arange(7) % 2)
    pool, _ = append_pool([tmp_path / "b.npz"], str(tmp_path / "pool"))
    assert pools.appended(pool) == (
        "7 images of 8x8x1 appended as generation 1, 10 classes, 1,207 in all; read as float64 0,1 NHWC"
    )
    assert pools.unlabelled_warning(pool) is None


def test_names_and_missing_shards(tmp_path: Path) -> None:
    pool = make(tmp_path, SOME % 3 - (SOME < 0) * 3, classes=["cat", "dog", "eel"], num_classes=4)
    lines = pools.described(pool, pool.missing())
    assert "images       1,200" in lines and "classes      4 (cat, dog, eel)" in lines
    assert lines[4].startswith(f"bytes        {pool.num_bytes:,} (") and lines[4].endswith("KiB)")
    counts = np.bincount(np.where(SOME < 0, -1, SOME % 3) + 1)
    names = ("none", "0 cat", "1 dog", "2 eel")
    listed = ", ".join(f"{name}: {count}" for name, count in zip(names, counts, strict=True))
    assert pools.label_counts(pool, []) == f"labels       {listed}"
    (tmp_path / "pool" / "shard-00000.parquet").unlink()
    missing = pool.missing()
    assert pools.described(pool, missing)[0] == "MISSING      1 of 3 shards: shard-00000.parquet"
    counts = np.bincount(SOME[500:] % 3)
    listed = ", ".join(f"{name}: {count}" for name, count in zip(names[1:], counts, strict=True))
    assert pools.label_counts(pool, missing) == f"labels       {listed}"
