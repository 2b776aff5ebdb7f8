"""How a probe's wall times become starts and slopes, on made-up records: no Ray."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ssat_ray.costs import Probe, Sizes, _held_bytes, _point_bytes, _train, take_apart
from ssat_ray.data.pool import MANIFEST, manifest
from ssat_ray.data.shard import Shard, write_shard
from ssat_ray.estimate import Target, estimate
from ssat_ray.loading import load_config
from ssat_ray.places import write_atomic
from ssat_ray.plan import build_plan
from ssat_ray.probe import follow, probe_config
from ssat_ray.selection.clusters import cluster_files
from ssat_ray.selection.gmm import GaussianMixture
from ssat_ray.stages.held import hold
from ssat_ray.store import Job, Store

SIZE = Sizes(warm=1000, small=4000, main=8000, shard_rows=2000, refined=4000, sample=2000)
SYNTH, SCORE, SELECT = 1e-4, 1e-3, 2e-3
"""Wall seconds an image that the made-up records below say."""
MEMORY = {"actor_seconds": 1.0, "world_size": 2, "peak_pss_bytes": 10**9}


def _publish(store: Store, job: Job, rows: int) -> None:
    """An artefact of a probe as the stages leave it: what `take_apart` reads of it."""
    folder = store.folder(job)
    folder.mkdir(parents=True)
    rng = np.random.default_rng(rows)
    record = {"rows": rows, "seconds": 0.0, "bytes_written": 10 * rows, **MEMORY}
    if job.stage == "labelled":
        record |= {"image_shape": [1, 8, 8], "num_classes": 10}
    if job.stage == "intermediate":
        record |= {"seconds": 7.0}
    if job.stage == "synth":
        images = rng.integers(0, 255, (rows, 8, 8, 1), dtype=np.uint8)
        shard = Shard(np.arange(rows), images, np.zeros(rows, np.int64))
        text = manifest([[write_shard(folder, 0, shard)]], (1, 8, 8), 10)
        write_atomic(folder / MANIFEST, text)
        record |= {"seconds": SYNTH * rows}
    if job.stage == "cluster":
        tensors = {"centroids": rng.random((10, 16), np.float32)}
        for name, data in cluster_files(tensors, {"method": "kmeans", "rows": 4000}).items():
            write_atomic(folder / name, data)
    if job.stage == "score":
        record |= {"seconds": SCORE * rows}
    if job.stage == "select":
        record |= {"seconds": 0.5 + SELECT * rows}
    store.publish(job, record)


@pytest.fixture
def probe(tmp_path: Path) -> Probe:
    config, store = load_config("scale-100m", ["intermediate.num_steps=1000"]), Store(tmp_path)
    pools = [probe_config(config, SIZE, n) for n in (SIZE.main, SIZE.small, SIZE.warm)]
    main, small, warm = (build_plan(one).unique for one in pools)
    small, warm = follow(small, main), follow(warm, main)
    for jobs, rows in ((main, SIZE.main), (small, SIZE.small), (warm, SIZE.warm)):
        for job in jobs:
            if store.record(job) is None:
                _publish(store, job, rows)
    walls = {"labelled": 1.0, "intermediate": 40.0, "synth": 5.0 + SYNTH * 13_000}
    walls |= {"cluster": 60.0, "score": 9.0 + SCORE * 13_000, "select": 3 * 1.5 + SELECT * 13_000}
    peaks = {"synth": 2 * 10**9, "cluster": 3 * 10**9, "score": 3 * 10**9, "one actor": 9 * 10**9}
    return Probe(
        config=pools[0],
        size=SIZE,
        store=store,
        main=main,
        small=small,
        warm=warm,
        extras=[],
        walls=walls,
        peaks=peaks,
        session_seconds=20.0,
        baseline=10**9,
        one_actor=600.0,
    )


def test_wall_time_is_taken_apart_into_starts_and_slopes(probe: Probe) -> None:
    config = load_config("scale-100m", ["intermediate.num_steps=1000"])
    measured = take_apart(config, probe)
    costs = {cost.stage: cost for cost in measured.stages}
    assert list(costs) == ["labelled", "intermediate", "synth", "cluster", "score", "select"]
    assert costs["synth"].once == pytest.approx(5.0)
    assert costs["score"].once == pytest.approx(9.0)
    assert costs["score"].per_image.at(1, 1) == pytest.approx(SCORE)
    assert costs["select"].per_image.at(1, 1) == pytest.approx(SELECT)
    assert costs["select"].per_seed == pytest.approx(1.5)
    assert costs["intermediate"].once == pytest.approx(33.0)
    assert costs["intermediate"].per_seed == pytest.approx(7.0 * 1000 / 200)
    cluster = costs["cluster"]
    again = cluster.per_image.at(1, 1) * 8000 + cluster.per_refined.at(1, 1) * 4000
    assert cluster.per_seed + again == pytest.approx(60.0)
    assert cluster.bytes_per_refined == 4 * 16 + 4
    assert cluster.session_bytes == 3 * 10**9  # what was seen
    assert cluster.growing_bytes == 10**9 + cluster.actor_bytes * config.runtime.actors
    assert cluster.scratch_per_refined == 4 * 16 + 16
    assert costs["select"].bytes_per_image == pytest.approx(4 + 0.1 * (40 + 18))
    assert (measured.image_shape, measured.gpus) == ((1, 8, 8), 0)


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ("train={max_steps: 100}", 125),  # with the cool-down
        ("train={schedule: cosine, num_epochs: 7}", 21),  # of ceil(300 / 128) steps
        ("train={schedule: multistep, num_steps: 90}", 90),
    ],
)
def test_training_is_costed_to_the_end_of_its_schedule(
    probe: Probe, settings: str, steps: int
) -> None:
    job = Job("train", 2, {"seed": 0, "recipe": "default"}, {})
    record = {"seconds": 3.0, "steps": 25, "images": {"labelled": 300, "pool": 0}, **MEMORY}
    probe.store.publish(job, record)
    config = load_config("digits", ["rows=[none, full]", settings])
    (cost,) = _train(config, replace(probe, extras=[job], walls={"train": 43.0}), 0.0)
    assert cost.per_seed == pytest.approx(3.0 / 25 * steps * 2)  # two rows
    assert cost.once == pytest.approx(40.0)
    assert (cost.loaded_share, cost.loaded_most) == (
        1.0,
        3 * 4096 * 2**20 // 64,
    )  # `full` reads all of it
    assert cost.loaded_bytes == 64 * MEMORY["world_size"]


def test_held_embeddings_lie_on_disk_as_stored(tmp_path: Path) -> None:
    """The files of a part are what the plan counts; a mixture's are as wide as before its PCA."""
    h = np.random.default_rng(0).normal(size=(5000, 8)).astype(np.float32)
    small = np.ones((2, 3))
    mixture = GaussianMixture(
        np.full(2, 0.5), small, small, "diag", np.zeros(8), np.eye(8)[:3], 0.0, 1, True
    )
    for storage in ("float32", "float16"):
        config = load_config("scale-100m", [f"cluster.storage={storage}"])
        hold(tmp_path / storage, 0, h.astype(storage), np.arange(5000), np.zeros(5000))
        size = sum(file.stat().st_size for file in (tmp_path / storage).rglob("*.npy"))
        for clusters in (h[:4], mixture):
            assert 5000 * _held_bytes(config, clusters) == pytest.approx(size, rel=0.01)
    assert (_point_bytes(h[:4]), _point_bytes(mixture)) == (4 * 8 + 4, 4 * 3)


def test_the_probe_itself_is_predicted(probe: Probe) -> None:
    """At the main pool's size the estimate is what that pool took, starts included."""
    measured = take_apart(load_config("scale-100m"), probe)
    found = estimate(measured, Target(SIZE.main, refine_rows=SIZE.refined))
    stages = {one.stage: one.start_seconds + one.seconds for one in found.stages}
    assert stages["cluster"] == pytest.approx(60.0)
    assert stages["score"] == pytest.approx(9.0 + SCORE * SIZE.main)
    assert found.seconds == pytest.approx(20.0 + sum(stages.values()))
    assert found.peak_bytes == 3 * 10**9
