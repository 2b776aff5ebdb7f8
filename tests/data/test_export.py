"""Exported pools: what NumPy and Pillow read is the pool, whole or not at all, in bounded memory."""

from __future__ import annotations

import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssat_ray.data.export import export_pool
from ssat_ray.data.ingest import import_pool
from ssat_ray.data.pool import MANIFEST, Pool, manifest
from ssat_ray.data.shard import Shard, write_shard
from ssat_ray.errors import UserError

CLASSES = 11


def _pool(
    folder: Path, shape: tuple[int, int, int] = (4, 5, 3), classes: int = CLASSES, rows: int = 7
) -> Pool:
    """Three shards with gaps between their ids, as a selection has them."""
    folder.mkdir()
    rng, entries = np.random.default_rng(0), []
    for i in range(3):
        ids = np.sort(rng.choice(1000, rows, replace=False)) + 1000 * i
        images = rng.integers(0, 256, (rows, *shape)).astype(np.uint8)
        labels = rng.integers(-1, classes, rows) if classes else np.full(rows, -1)
        entries.append(write_shard(folder, i, Shard(ids, images, labels)))
    height, width, channels = shape
    (folder / MANIFEST).write_text(manifest([entries], (channels, height, width), classes))
    return Pool(folder)


@pytest.mark.parametrize("channels", [1, 3])
def test_an_npz_is_the_whole_pool(channels: int, tmp_path: Path) -> None:
    pool = _pool(tmp_path / "pool", (4, 5, channels))
    export_pool(pool, tmp_path / "out.npz")
    expected = pool.load()
    with np.load(tmp_path / "out.npz", allow_pickle=False) as found:
        assert found.files == ["image", "label", "id"]
        for name, array in zip(
            found.files, (expected.images, expected.labels, expected.ids), strict=True
        ):
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array)
    with zipfile.ZipFile(tmp_path / "out.npz") as archive:
        assert archive.testzip() is None


def test_an_npz_can_be_imported_again(tmp_path: Path) -> None:
    pool = _pool(tmp_path / "pool")
    export_pool(pool, tmp_path / "out.npz")
    again, _ = import_pool([tmp_path / "out.npz"], str(tmp_path / "again"), num_classes=CLASSES)
    np.testing.assert_array_equal(again.load().images, pool.load().images)
    np.testing.assert_array_equal(again.load().labels, pool.load().labels)


def test_an_npz_takes_the_memory_of_a_shard(tmp_path: Path) -> None:
    pool = _pool(tmp_path / "pool", (64, 64, 3), rows=100)
    size = 3 * 100 * 64 * 64 * 3
    tracemalloc.start()
    export_pool(pool, tmp_path / "out.npz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < size / 2 < (tmp_path / "out.npz").stat().st_size


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_has_an_image_of_each_id_under_its_label(channels: int, tmp_path: Path) -> None:
    pool = _pool(tmp_path / "pool", (4, 5, channels))
    export_pool(pool, tmp_path / "out")
    expected = pool.load()
    names = [
        f"{'none' if label < 0 else f'{label:02d}'}/{one:04d}.png"
        for one, label in zip(expected.ids, expected.labels, strict=True)
    ]
    found = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.png"))
    assert found == sorted(names) and any(name.startswith("none/") for name in names)
    for name, image in zip(names, expected.images, strict=True):
        pixels = np.asarray(Image.open(tmp_path / "out" / name))
        np.testing.assert_array_equal(pixels.reshape(image.shape), image)


def test_a_folder_can_be_imported_again(tmp_path: Path) -> None:
    """With its classes' names, also where one has no image, and with images that have no label."""
    source = tmp_path / "source"
    pixels = np.arange(24, dtype=np.uint8).reshape(6, 2, 2)
    for place, image in zip(("dog", "dog", "eel", "none", "none", "eel"), pixels, strict=True):
        (source / place).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(source / place / f"{image.min()}.png")
    pool, _ = import_pool([source], str(tmp_path / "pool"), classes=["cat", "dog", "eel"])
    assert pool.load().labels.tolist() == [1, 1, 2, 2, -1, -1] and pool.num_classes == 3
    export_pool(pool, tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["dog", "eel", "none"]
    again, _ = import_pool([tmp_path / "out"], str(tmp_path / "again"), classes=pool.class_names)
    np.testing.assert_array_equal(again.load().images, pool.load().images)
    np.testing.assert_array_equal(again.load().labels, pool.load().labels)
    export_pool(pool, tmp_path / "out", force=True)


def test_a_pool_without_classes_is_a_flat_folder(tmp_path: Path) -> None:
    pool = _pool(tmp_path / "pool", classes=0)
    export_pool(pool, tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        f"{one:04d}.png" for one in pool.load().ids
    ]
    again, _ = import_pool([tmp_path / "out"], str(tmp_path / "again"))
    np.testing.assert_array_equal(again.load().images, pool.load().images)


@pytest.mark.parametrize("name", ["out.npz", "out"])
def test_an_export_is_replaced_if_that_is_asked_for(name: str, tmp_path: Path) -> None:
    pool, other = _pool(tmp_path / "pool"), _pool(tmp_path / "other", classes=0)
    export_pool(pool, tmp_path / name)
    before = _contents(tmp_path / name)
    with pytest.raises(UserError, match="exists; --force replaces it"):
        export_pool(other, tmp_path / name)
    assert _contents(tmp_path / name) == before
    export_pool(other, tmp_path / name, force=True)
    export_pool(other, tmp_path / f"fresh-{name}")
    assert _contents(tmp_path / name) == _contents(tmp_path / f"fresh-{name}") != before
    assert len(list(tmp_path.iterdir())) == 4  # nothing else is left


def _contents(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return {str(p.relative_to(path)): p.read_bytes() for p in files}


@pytest.mark.parametrize(
    "file", ["holiday.png", "7/holiday.png", "7/7.jpg", "cats/7.png", "7/7.png/7.png", "x"]
)
def test_a_folder_with_other_files_is_never_replaced(file: str, tmp_path: Path) -> None:
    path = tmp_path / "out" / file
    path.parent.mkdir(parents=True)
    path.write_text("precious")
    (tmp_path / "out" / "8").mkdir()
    with pytest.raises(UserError, match="which no export made"):
        export_pool(_pool(tmp_path / "pool"), tmp_path / "out", force=True)
    assert path.read_text() == "precious"


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    export_pool(_pool(tmp_path / "pool"), tmp_path / "out")
    assert len(list((tmp_path / "out").rglob("*.png"))) == 21


@pytest.mark.parametrize("name", ["out.npz", "out"])
def test_a_failed_export_leaves_what_was_there(name: str, tmp_path: Path) -> None:
    pool = _pool(tmp_path / "pool")
    export_pool(pool, tmp_path / name)
    before = _contents(tmp_path / name)
    (tmp_path / "pool" / "shard-00002.parquet").write_bytes(b"altered")
    with pytest.raises(UserError, match=r"shard-00002\.parquet was altered"):
        export_pool(pool, tmp_path / name, force=True)
    assert _contents(tmp_path / name) == before
    with pytest.raises(UserError, match="was altered"):
        export_pool(pool, tmp_path / f"new-{name}")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([name, "pool"])


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("s3://bucket/out", "a local"),
        ("out.npy", r"give an \.npz file, or a folder"),
        ("nowhere/out.npz", "its folder does not exist"),
        ("folder.npz", "is a folder"),
        ("file", "is no folder"),
    ],
)
def test_targets_that_cannot_be(
    target: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=expected):
        export_pool(_pool(tmp_path / "pool"), target, force=True)
