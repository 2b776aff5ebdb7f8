"""References to the generations of a pool that exists elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ssat_ray.config import RuntimeConfig
from ssat_ray.data.ingest import append_pool, import_pool
from ssat_ray.data.labelled import LabelledSet
from ssat_ray.errors import UserError
from ssat_ray.stages.base import StageContext, Task
from ssat_ray.stages.pool import STAGE, refer
from ssat_ray.store import Job, Store


def test_references_keep_the_digests_of_a_pool_that_got_more_classes(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 4, 1), dtype=np.uint8)
    paths, place = [tmp_path / "a.npz", tmp_path / "b.npz"], str(tmp_path / "pool")
    for path, part in zip(paths, images, strict=True):
        np.savez(path, image=part, label=np.arange(5) % 2)
    import_pool(paths[:1], place)
    whole, _ = append_pool(paths[1:], place, classes=["cat", "dog", "eel"])
    for number, about in enumerate(whole.manifest["generations"]):
        params = {"generation": number, "digest": about["digest"]}
        job = Job("pool", 1, params, {}, location=place)
        (tmp_path / str(number)).mkdir()
        found = refer(Task(job, tmp_path / str(number), {}, tmp_path))
        assert [g["digest"] for g in found.manifest["generations"]] == [about["digest"]]
        assert found.num_classes == (2, 3)[number]
        np.testing.assert_array_equal(found.load().images, images[number])


@pytest.mark.parametrize(
    ("size", "labels", "expected"),
    [
        (4, 2, r"images of .* are \(1, 4, 4\) \(C, H, W\), the labelled ones \(1, 8, 8\)"),
        (8, 3, r"labels up to 2, the labelled set 2 classes"),
    ],
)
def test_a_pool_that_does_not_fit_the_labelled_set(
    tmp_path: Path, size: int, labels: int, expected: str
) -> None:
    rng = np.random.default_rng(0)

    def images(count: int, side: int) -> np.ndarray:
        return rng.integers(0, 256, (count, side, side, 1), dtype=np.uint8)

    np.savez(tmp_path / "a.npz", image=images(6, size), label=np.arange(6) % labels)
    import_pool([tmp_path / "a.npz"], str(tmp_path / "pool"))
    splits = {name: (images(4, 8), np.arange(4) % 2) for name in ("labelled", "validation", "test")}
    store, labelled = Store(tmp_path / "store"), Job("labelled", 1, {}, {})
    files = LabelledSet(splits, num_classes=2).save(tmp_path)
    Task.of(labelled, store).write(files)
    job = Job("pool", 1, {"generation": 0}, {}, {"labelled": labelled}, "", str(tmp_path / "pool"))
    with pytest.raises(UserError, match=expected):
        STAGE.run([job], StageContext(store, RuntimeConfig()))
    assert store.record(job) is None
