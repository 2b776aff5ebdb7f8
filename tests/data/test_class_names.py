"""Classes keep their numbers, whichever of them a folder has: by name, never by order."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssat_ray.data.ingest import append_pool, copy_pool, import_pool, verify_pool
from ssat_ray.data.pool import MANIFEST, Pool
from ssat_ray.errors import UserError

COLOURS = {"cat": 10, "dog": 20, "eel": 30, "fox": 40, "gnu": 50}
"""An image's pixels tell its class."""


def folder(root: Path, *names: str, count: int = 2) -> Path:
    for name in names:
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.new("L", (4, 4), COLOURS[name] + i).save(root / name / f"{i}.png")
    return root


def check(pool: Pool, *names: str) -> None:
    """Every image has the number of its colour's name."""
    whole = pool.load()
    by_colour = {value: name for name, value in COLOURS.items()}
    colours = whole.images[:, 0, 0, 0] // 10 * 10
    found = [by_colour[int(colour)] for colour in colours]
    assert pool.class_names == list(names) and pool.num_classes == len(names)
    assert [names[label] for label in whole.labels] == found
    assert verify_pool(pool) == []


@pytest.fixture
def target(tmp_path: Path) -> str:
    check(
        import_pool([folder(tmp_path / "a", "cat", "dog", "eel")], str(tmp_path / "pool"))[0],
        "cat", "dog", "eel",
    )  # fmt: skip
    return str(tmp_path / "pool")


def test_an_appended_folder_with_fewer_classes(target: str, tmp_path: Path) -> None:
    pool, _ = append_pool([folder(tmp_path / "b", "eel", count=3)], target)
    check(pool, "cat", "dog", "eel")
    copied, _ = copy_pool(target, str(tmp_path / "copy"), shard_rows=2)
    check(copied, "cat", "dog", "eel")


def test_an_unknown_class_is_refused_or_added_at_the_end(target: str, tmp_path: Path) -> None:
    more, digests = folder(tmp_path / "b", "dog", "fox"), Pool(target).manifest["generations"]
    words = r"b: fox is no class of .*pool, which has cat, dog, eel\..* --classes cat,dog,eel,fox "
    with pytest.raises(UserError, match=words):
        append_pool([more], target)
    for classes in (["fox", "cat", "dog", "eel"], ["cat", "dog"]):
        with pytest.raises(UserError, match="has cat, dog, eel; name these first, in this order"):
            append_pool([more], target, classes=classes)
    pool, _ = append_pool([more], target, classes=["cat", "dog", "eel", "fox"])
    check(pool, "cat", "dog", "eel", "fox")
    kept = [generation["digest"] for generation in pool.manifest["generations"]]
    assert kept[0] == digests[0]["digest"] and pool.classes_then == [3, 4]
    five = folder(tmp_path / "c", "gnu"), ["cat", "dog", "eel", "fox", "gnu"]
    pool, _ = append_pool([five[0]], target, classes=five[1])
    check(pool, *five[1])
    assert pool.classes_then == [3, 4, 5]
    assert [g["digest"] for g in pool.manifest["generations"]][:2] == kept
    copied, _ = copy_pool(target, str(tmp_path / "copy"))
    assert copied.classes_then == [3, 4, 5]
    check(copied, *five[1])


def test_a_pool_without_names(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", image=np.full((2, 4, 4), 30, np.uint8), label=[0, 0])
    target = str(tmp_path / "pool")
    pool, _ = import_pool([tmp_path / "a.npz"], target, num_classes=2)
    assert pool.class_names == [] and "class_names" not in pool.manifest
    more = folder(tmp_path / "b", "cat", "eel")
    with pytest.raises(UserError, match=r"b has classes by name \(cat, eel\), .* 2 without names"):
        append_pool([more], target)
    with pytest.raises(UserError, match=r"--classes eel: .*pool has 2 classes; name all of them"):
        append_pool([more], target, classes=["eel"])
    check(append_pool([more], target, classes=["eel", "cat"])[0], "eel", "cat")
    np.savez(tmp_path / "c.npz", image=np.full((2, 4, 4), 10, np.uint8), label=[1, 1])
    check(append_pool([tmp_path / "c.npz"], target)[0], "eel", "cat")


def test_classes_of_an_import(tmp_path: Path) -> None:
    """The labelled set's classes, of which the pool's folders may be some; and several folders."""
    paths = [folder(tmp_path / "a", "dog", "fox"), folder(tmp_path / "b", "cat", "fox", count=3)]
    names = ("fox", "eel", "dog", "cat")
    check(import_pool(paths, str(tmp_path / "p"), classes=names)[0], *names)
    check(import_pool(paths, str(tmp_path / "q"))[0], "cat", "dog", "fox")
    assert import_pool(paths, str(tmp_path / "q"))[1] is False
    with pytest.raises(UserError, match=r"with classes None \(now \['cat', 'dog', 'fox'\]\)"):
        import_pool(paths, str(tmp_path / "q"), classes=["cat", "dog", "fox"])
    with pytest.raises(UserError, match=r"b: cat is no class of --classes, which has dog, fox"):
        import_pool(paths, str(tmp_path / "r"), classes=["dog", "fox"])
    with pytest.raises(UserError, match=r"--num-classes 2: there are 3 classes by name"):
        import_pool(paths, str(tmp_path / "r"), num_classes=2)
    pool, _ = import_pool(paths, str(tmp_path / "r"), num_classes=5)
    assert pool.num_classes == 5 and pool.class_names == ["cat", "dog", "fox"]


def test_a_class_that_is_new_to_an_unfinished_import(tmp_path: Path) -> None:
    """It would number the shards that are written differently."""
    paths, target = [folder(tmp_path / "a", "dog"), folder(tmp_path / "b", "eel")], tmp_path / "p"
    (target / "shard-00002.parquet").mkdir(parents=True)  # no file can take its place
    for more in ((), ("cat",)):
        folder(tmp_path / "b", *more)
        words = (
            "could not be written" if not more else r"unfinished command with class_names \['dog'"
        )
        with pytest.raises(UserError, match=words):
            import_pool(paths, str(target), shard_rows=1, restart=not more)
    (target / "shard-00002.parquet").rmdir()
    check(import_pool(paths, str(target), restart=True)[0], "cat", "dog", "eel")


def test_a_label_beyond_the_names(target: str, tmp_path: Path) -> None:
    """Of a pool whose numbers go further than its names."""
    about = json.loads(Path(target, MANIFEST).read_text())
    about["class_names"] = ["cat", "dog"]
    Path(target, MANIFEST).write_text(json.dumps(about))
    import_pool([folder(tmp_path / "b", "cat", "dog")], str(tmp_path / "other"))
    with pytest.raises(UserError, match=r"pool row 4: label 2 has no name, .* \(cat, dog\)"):
        append_pool([Path(target)], str(tmp_path / "other"), classes=["cat", "dog", "x"])
