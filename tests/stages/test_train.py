"""train: the best recipe, images, steps and the checkpoint of a real run; diverging recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from ssat_ray.config import TrainConfig
from ssat_ray.data.pool import Pool
from ssat_ray.errors import RunFailed, UserError
from ssat_ray.models.files import load_classifier
from ssat_ray.places import write_atomic
from ssat_ray.stages.base import Task
from ssat_ray.stages.group import DIVERGED
from ssat_ray.stages.shards import QUARANTINED
from ssat_ray.stages.train import BEST, CARRIED, _Unlabelled, keep_best
from ssat_ray.store import Job, Store
from ssat_ray.training.sources import Stream


def published(store: Store, recipe: str, record: dict[str, Any]) -> Job:
    job = Job("train", 2, {"seed": 0, "recipe": recipe, "search": True}, {})
    for name in ("model.safetensors", "model.json"):
        write_atomic(store.folder(job) / name, f"{name} of {recipe}")
    store.publish(job, record)
    return job


def test_a_diverged_recipe_loses_the_search(tmp_path: Path) -> None:
    store = Store(tmp_path)
    finished = dict.fromkeys(CARRIED, 0) | {"val_pgd": 70.0, "seconds": 3.0}
    good = published(store, "slow", finished)
    bad = published(store, "wild", {DIVERGED: "the loss became NaN", "seconds": 2.0})
    best = Job("train", 2, {"seed": 0, "recipe": BEST}, {}, {"slow": good, "wild": bad})
    keep_best(Task.of(best, store))
    record = store.record(best)
    assert record is not None and record["recipe"] == "slow"
    assert record["diverged_recipes"] == {"wild": "the loss became NaN"}
    assert record["seconds_all_recipes"] == 5.0
    assert (store.folder(best) / "model.json").read_text() == "model.json of slow"


def test_a_search_without_a_survivor_fails(tmp_path: Path) -> None:
    store = Store(tmp_path)
    bad = published(store, "wild", {DIVERGED: "the loss became NaN", "seconds": 2.0})
    best = Job("train", 2, {"seed": 0, "recipe": BEST}, {}, {"wild": bad})
    with pytest.raises(RunFailed, match="every recipe diverged: the loss became NaN"):
        keep_best(Task.of(best, store))


@pytest.mark.parametrize("window_mib", [1.0, 0.005])
def test_a_pool_in_memory_or_streamed_leaves_bad_shards_out_where_asked(
    selections: Any, tmp_path: Path, window_mib: float
) -> None:
    folder = selections.pool(tmp_path / "pool", 300, 100)
    pool = Pool(folder)
    first, _, third = list(pool)
    sizes = [entry["bytes"] for entry in pool.shards]
    config = TrainConfig(window_mib=window_mib, batch_size=64, unsup_fraction=0.5)

    def unlabelled(on_bad_shard: str) -> _Unlabelled:
        job = Job("train", 2, {"seed": 0}, {"on_bad_shard": on_bad_shard})
        task = Task(job, tmp_path, {"unlabelled": folder}, tmp_path)
        return _Unlabelled(task, config, retries=0)

    whole = unlabelled("fail")
    assert whole.is_streamed == (window_mib < 1) and whole.shard_rows == [100] * 3
    read = whole.record(1)["bytes_read"]
    assert read in sizes if whole.is_streamed else read == sum(sizes)
    path = Path(pool.shard_path(1))
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    left = unlabelled("quarantine")
    assert left.shard_rows == [100, 100]
    (note,) = left.record(1)[QUARANTINED]
    assert note["file"] == path.name and "was altered" in note["reason"]
    images = left.images()
    if isinstance(images, Stream):
        assert len(images) == 200 and images.image_shape == (1, 8, 8)
        return
    assert images is not None
    expected = np.concatenate([first.images, third.images])
    assert np.array_equal(images[0].permute(0, 2, 3, 1).numpy(), expected)
    assert np.array_equal(images[1].numpy(), np.concatenate([first.labels, third.labels]))
    with pytest.raises(UserError, match=f"{path.name} was altered"):
        unlabelled("fail").images()


@pytest.mark.ray
def test_none_keeps_its_best_recipe(tiny_run: Any, folder: Any) -> None:
    job = tiny_run.plan.jobs["none", 0, "train"]
    record = tiny_run.store.record(job)
    validation = {name: tiny_run.store.record(j)["val_pgd"] for name, j in job.inputs.items()}
    assert set(validation) == {"default", "half"}
    assert validation[record["recipe"]] == max(validation.values())
    assert record["validation_by_recipe"] == validation
    chosen = tiny_run.store.folder(job.inputs[record["recipe"]]) / "model.safetensors"
    kept = tiny_run.store.folder(job) / "model.safetensors"
    assert kept.read_bytes() == chosen.read_bytes()


@pytest.mark.ray
def test_image_counts_and_steps(tiny_run: Any) -> None:
    counts = {"none": 0, "random": 100, "lcs-km": 100, "full": 400}
    for row, pool in counts.items():
        record = tiny_run.store.record(tiny_run.plan.jobs[row, 0, "train"])
        assert record["images"] == {"labelled": 300, "pool": pool}
        plateau = record["plateau_step"]
        assert record["steps"] == plateau + max(1, round(0.25 * plateau))
        assert record["history"][-1]["step"] == record["steps"]
        assert (record["bytes_read"] > 0) == (pool > 0)


@pytest.mark.ray
def test_classifier_checkpoint_is_safetensors_and_json(tiny_run: Any, folder: Any) -> None:
    folder = tiny_run.store.folder(tiny_run.plan.jobs["full", 0, "train"])
    assert sorted(p.name for p in folder.iterdir()) == [
        "model.json",
        "model.safetensors",
        "stage.json",
    ]
    model = load_classifier(folder)
    weights = load_file(folder / "model.safetensors")
    assert set(model.state_dict()) == set(weights)
    assert not any(p.requires_grad for p in model.parameters())
