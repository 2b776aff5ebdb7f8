"""References to the generations of a pool that exists elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ssat_ray.data.ingest import append_pool, import_pool
from ssat_ray.stages.base import Task
from ssat_ray.stages.pool import refer
from ssat_ray.store import Job


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
