"""Which files a pool holds already, file by file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ssat_ray.data.folder import Folder
from ssat_ray.data.importers.base import ImportOptions
from ssat_ray.data.ingest import append_pool, import_pool
from ssat_ray.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 10, 4, 4, 1), dtype=np.uint8)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{name}.npy" for name in "abcd"]
    for path, images in zip(paths, IMAGES, strict=True):
        np.save(path, images)
    return paths


def test_a_file_is_added_once_in_whatever_command(files: list[Path], tmp_path: Path) -> None:
    a, b, c, d = files
    target = str(tmp_path / "pool")
    import_pool([a, b], target, shard_rows=3)
    append_pool([c], target)
    for known in ([a], [b], [b, a], [c, a], [a, b, c]):
        assert append_pool(known, target)[1] is False
    with pytest.raises(
        UserError, match=r"holds .*b\.npy, .*c\.npy already, but not .*d\.npy\. .*--again"
    ):
        append_pool([b, d, c], target)
    pool, written = append_pool([d], target)
    assert written and len(pool) == 40
    np.testing.assert_array_equal(pool.load().images, IMAGES.reshape(40, 4, 4, 1))
    assert len(append_pool([b, d], target, again=True)[0]) == 60


def test_other_options_and_labels_are_refused(files: list[Path], tmp_path: Path) -> None:
    a, b, _, _ = files
    labels = [tmp_path / "l.npy", tmp_path / "m.npy"]
    for path, value in zip(labels, (0, 1), strict=True):
        np.save(path, np.full(10, value))
    target = str(tmp_path / "pool")
    import_pool([a], target, ImportOptions(labels=str(labels[0])), num_classes=2)
    same = tmp_path / "same.npy"
    same.write_bytes(labels[0].read_bytes())
    assert append_pool([a], target, ImportOptions(labels=str(same)))[1] is False
    for options in (ImportOptions(labels=str(labels[1])), ImportOptions()):
        with pytest.raises(UserError, match=r"holds .*a\.npy already, with other labels\. --again"):
            append_pool([a], target, options)
    with pytest.raises(
        UserError, match=r"a\.npy already, with other labels, range None \(now 0,1\)"
    ):
        append_pool([a], target, ImportOptions(range="0,1"))
    pool, written = append_pool([b], target, ImportOptions(labels=str(labels[0])))
    assert written and len(pool) == 20


class NoDelete(Folder):
    """A process that is killed before it can remove its journal."""

    def delete(self, name: str) -> None:
        raise KeyboardInterrupt


def test_an_append_again_that_was_killed_at_its_end_is_finished(
    files: list[Path], tmp_path: Path
) -> None:
    a, b, _, _ = files
    target = tmp_path / "pool"
    import_pool([a, b], str(target))
    with pytest.raises(KeyboardInterrupt):
        append_pool([b], NoDelete(target), again=True)
    assert (target / "append.json").exists()
    pool, written = append_pool([b], str(target), again=True)
    assert not written and len(pool) == 30 and not (target / "append.json").exists()
    assert len(append_pool([b], str(target), again=True)[0]) == 40


def test_an_append_again_that_was_killed_in_the_middle_is_resumed(
    files: list[Path], tmp_path: Path
) -> None:
    a, b, _, _ = files
    target = str(tmp_path / "pool")
    import_pool([a, b], target, shard_rows=4)

    def kill(rows: int, total: int | None, row_bytes: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        append_pool([b], target, again=True, report=kill)
    pool, written = append_pool([b], target, again=True)
    assert written and len(pool) == 30 and len(pool.generations) == 2
