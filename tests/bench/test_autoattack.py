"""bench autoattack, tiny: the line, and the flags of its actors against pyautoattack called directly."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from ssat_ray.bench import autoattack
from ssat_ray.data.labelled import LabelledSet, unit_float
from ssat_ray.loading import load_config
from ssat_ray.models.files import load_classifier
from ssat_ray.plan import build_plan
from ssat_ray.stages.evaluate import read_flags
from ssat_ray.store import Store


def test_all_test_images_in_the_batches_that_the_preset_attacks() -> None:
    rows = inspect.signature(autoattack.run).parameters["rows"].default
    config, preset = load_config("digits", autoattack.settings(rows)), load_config("digits")
    assert config.data.num_test == preset.data.num_test
    assert config.evaluate.batch_size == preset.evaluate.batch_size


@pytest.mark.ray
@pytest.mark.slow
def test_two_actors_and_one_agree_with_pyautoattack(tmp_path: Path) -> None:
    from pyautoattack import AutoAttack  # type: ignore[import-untyped]

    short = (
        "train.max_steps=40",
        "model={widths: [8, 16], strides: [2, 2]}",
        "threat.eps=0.05",
        "evaluate.batch_size=2",
    )
    (line,) = autoattack.run(40, 1, short, tmp_path)
    assert len(line.ours) == len(line.bare) == 1 and min(line.ours + line.bare) > 0
    assert line.bar == 1.7 and "40 images in 20 batches" in line.what
    assert line.notes["flags"] == "identical by image"
    busy = {n: float(line.notes[f"busy, {n}"].split()[0]) for n in ("one", "two")}
    assert busy["one"] <= 1.01 * line.bare[0] and busy["two"] <= 2.02 * line.ours[0]
    assert busy["one"] > 0.5 * line.bare[0] and busy["two"] > 0.5 * line.ours[0]

    settings = [*autoattack.TRAINING, *autoattack.settings(40), *short]
    jobs, store = build_plan(load_config("digits", settings)).jobs, Store(tmp_path / "store")
    job = jobs["none", 0, "evaluate:autoattack"]
    found = read_flags(store.folder(job)).tolist()
    record = store.record(job)
    assert record is not None and record["blocks"] == 20 and len(record["actor_pids"]) == 1
    model = load_classifier(store.folder(jobs["none", 0, "train"]))
    images, y = LabelledSet.load(store.folder(jobs["none", 0, "labelled"])).tensors("test")
    x, expected = unit_float(images), []
    for first in range(0, 40, 2):
        rows = slice(first, first + 2)
        adversary = AutoAttack(model, norm="Linf", eps=0.05, seed=0, version="standard")
        adversary.verbose = False
        _, y_adv = adversary.run_standard_evaluation(x[rows], y[rows], batch_size=2)
        expected += (y_adv == y[rows]).tolist()
    assert found == expected
    assert 0 < sum(found) < 40
