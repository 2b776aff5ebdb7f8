"""evaluate: flags equal the attacks called directly batch by batch; resume, order, classes, signs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssat_ray.adversarial.autoattack import apgd_ce_flags
from ssat_ray.adversarial.evaluation import clean_flags, pgd_flags
from ssat_ray.config import ModelConfig
from ssat_ray.data.labelled import LabelledSet, read_labelled, unit_float
from ssat_ray.loading import load_config
from ssat_ray.models.files import classifier_files, load_classifier
from ssat_ray.models.registry import build_classifier
from ssat_ray.places import write_atomic
from ssat_ray.plan import STAGES, build_plan
from ssat_ray.stages.base import StageContext, Task
from ssat_ray.stages.evaluate import (
    AttackActor,
    attack_batch,
    attack_signs,
    finish,
    num_batches,
    read_flags,
)
from ssat_ray.stages.parts import NOTES, in_order
from ssat_ray.store import Job, Store


@pytest.mark.ray
@pytest.mark.parametrize("row", ["none", "full"])
def test_flags_equal_the_attack_called_directly(tiny_run: Any, row: str, folder: Any) -> None:
    labelled = LabelledSet.load(folder(tiny_run, row, "labelled"))
    images, y = labelled.tensors("test")
    x = unit_float(images).contiguous(memory_format=torch.channels_last)
    model = load_classifier(folder(tiny_run, row, "train"))
    options, eps = tiny_run.config.evaluate, tiny_run.config.threat.eps
    torch.set_num_threads(1)
    direct = {
        "clean": lambda x, y, _: clean_flags(model, x, y, 200),
        "pgd": lambda x, y, first: pgd_flags(
            model,
            x,
            y,
            eps=eps,
            step_size=options.pgd_step_size,
            num_steps=options.pgd_steps,
            seed=0,
            first_id=first,
            batch_size=200,
        ),
        "apgd-ce": lambda x, y, _: (
            apgd_ce_flags(
                model, x, y, eps=eps, num_steps=options.apgd_steps, seed=0, batch_size=200
            ).flags
        ),
    }
    for attack, call in direct.items():
        flags = torch.cat([call(x[a : a + 200], y[a : a + 200], a) for a in range(0, len(y), 200)])
        found = read_flags(folder(tiny_run, row, f"evaluate:{attack}"))
        assert np.array_equal(found, flags.numpy()), attack


SETTINGS = {"norm": "linf", "eps": 0.02, "seed": 3, "batch_size": 12}


@pytest.fixture(scope="module")
def digits_net() -> tuple[Any, torch.Tensor, torch.Tensor]:
    """A small untrained net and 24 digits as it labels them, four of them wrongly."""
    model = build_classifier(ModelConfig(widths=(4, 8), strides=(2, 2)), (1, 8, 8), 10, seed=2)
    model = model.eval().requires_grad_(False)
    config = load_config("digits", ["data.num_test=24"]).data
    images, _ = read_labelled(config).tensors("test")
    x = unit_float(images).contiguous(memory_format=torch.channels_last)
    y = model(x).argmax(1)
    y[:4] = (y[:4] + 1) % 10
    return model, x, y


@pytest.mark.slow
def test_autoattack_on_a_batch_equals_pyautoattack_called_directly(digits_net: Any) -> None:
    """The published version on a net of convolutions, batch by batch: the same flag for every image."""
    from pyautoattack import AutoAttack  # type: ignore[import-untyped]

    model, x, y = digits_net
    left = 0
    for first in (0, 12):
        rows = slice(first, first + 12)
        found = attack_batch("autoattack", model, x[rows], y[rows], SETTINGS, first)
        adversary = AutoAttack(model, norm="Linf", eps=0.02, seed=3, version="standard")
        adversary.verbose = False
        images = x[rows].contiguous()
        _, y_adv = adversary.run_standard_evaluation(images, y[rows], batch_size=12)
        assert found.flags.tolist() == (y_adv == y[rows]).tolist()
        assert found.name == "AutoAttack"
        left += int(found.flags.sum())
    assert 0 < left < 20


def test_what_a_batch_says_of_itself(digits_net: Any) -> None:
    model, x, y = digits_net
    pgd = {**SETTINGS, "num_steps": 2, "step_size": 0.05}
    names = {
        attack_batch(attack, model, x, y, settings, 0).name
        for attack, settings in (
            ("clean", {"batch_size": 24}),
            ("pgd", {**pgd, "restarts": 1}),
            ("pgd", {**pgd, "restarts": 3}),
            ("apgd-ce", pgd),
        )
    }
    assert names == {"clean", "PGD-2", "PGD-2 (3 restarts)", "APGD-CE"}


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_restarts_and_the_norm_reach_the_attack(digits_net: Any, norm: str) -> None:
    model, x, y = digits_net
    left = []
    for restarts in (1, 6):
        settings = {"num_steps": 1, "step_size": 0.1, "restarts": restarts, "norm": norm}
        found = attack_batch("pgd", model, x, y, {**SETTINGS, **settings, "eps": 0.3}, 40)
        expected = pgd_flags(model, x, y, eps=0.3, seed=3, first_id=40, **settings)
        assert torch.equal(found.flags, expected)
        left.append(int(expected.sum()))
    assert left[1] < left[0] < 20


ATTACKS = ("autoattack", "pgd", "apgd-ce", "clean")


@pytest.fixture
def jobs(tmp_path: Path, digits_net: Any) -> tuple[Store, dict[str, Job]]:
    """A store with 24 test images and a classifier, and the jobs that attack it."""
    config = load_config(
        "digits",
        [
            "rows=[none,random]",
            "model={widths: [4, 8], strides: [2, 2]}",
            "data.num_test=24",
            "train.none_recipes={}",
            "evaluate={batch_size: 10, autoattack_seeds: [0], pgd_restarts: 2, pgd_steps: 3}",
        ],
    )
    plan, store = build_plan(config), Store(tmp_path / "store")
    STAGES["labelled"].run(
        [plan.jobs["none", 0, "labelled"]],
        StageContext(store, config.runtime),
    )
    trained = Task.of(plan.jobs["none", 0, "train"], store)
    trained.write(classifier_files(digits_net[0], config.model, (1, 8, 8), 10))
    trained.publish({})
    return store, {attack: plan.jobs["none", 0, f"evaluate:{attack}"] for attack in ATTACKS}


def test_the_longest_batches_come_first(jobs: Any) -> None:
    """Whatever order the jobs have: AutoAttack, APGD (100 steps), PGD (2 x 3), clean; short batches last."""
    store, found = jobs
    names = ["clean", "pgd", "autoattack", "apgd-ce"]
    tasks = [Task.of(found[name], store) for name in names]
    order = in_order(AttackActor, tasks, {i: {0, 1, 2} for i in range(4)})
    longest_first = ["autoattack", "apgd-ce", "pgd", "clean"]
    assert [(names[item["task"]], item["part"]) for item in order] == [
        (name, part) for name in longest_first for part in (0, 1, 2)
    ]
    costs = [AttackActor.costs(tasks[item["task"]], [item["part"]])[0] for item in order]
    assert costs[:3] == [88000, 88000, 35200] and costs[3:6] == [2000, 2000, 800]
    assert costs[6:] == [120, 120, 48, 10, 10, 4]
    assert num_batches(found["clean"], store) == 3


def test_the_record_has_classes_and_the_flags_their_order(jobs: Any, tmp_path: Path) -> None:
    store, found = jobs
    task = Task.of(found["clean"], store)
    labels = LabelledSet.load(task.inputs["labelled"]).splits["test"][1]
    flags = np.arange(24) % 3 > 0
    notes = [
        {
            "rows": len(part),
            "name": "clean",
            "correct": flags[part].astype(int).tolist(),
            "labels": labels[part].tolist(),
            "signs": [],
            "by_square": 0,
        }
        for part in np.split(np.arange(24), [10, 20])
    ]
    record = finish(task, notes, StageContext(store, load_config("digits").runtime))
    assert np.array_equal(read_flags(task.folder), flags)
    assert record["accuracy"] == pytest.approx(16 / 24)
    for label, accuracy in enumerate(record["accuracy_by_class"]):
        own = flags[labels == label]
        assert accuracy == (pytest.approx(own.mean()) if len(own) else None)
    known = [value for value in record["accuracy_by_class"] if value is not None]
    assert record["accuracy_by_class"][record["worst_class"]] == min(known) < max(known)


def test_signs_are_counted_over_all_batches() -> None:
    def note(signs: tuple[str, ...], by_square: int) -> dict[str, Any]:
        return {"name": "AutoAttack", "rows": 500, "signs": signs, "by_square": by_square}

    assert attack_signs([note((), 1), note((), 1)]) == []  # 0.2 % may be chance
    assert attack_signs([note(("no gradient",), 0), note((), 3)]) == [
        "AutoAttack, 1 of 2 batches: no gradient",
        "AutoAttack: Square, which uses no gradients, broke 3 of 1000 images that the attacks by "
        "gradients had left: masked gradients",
    ]


@pytest.mark.ray
@pytest.mark.slow
def test_a_batch_that_is_done_is_not_attacked_again(
    jobs: Any, tmp_path: Path, ray_here: None, digits_net: Any
) -> None:
    """What a killed run left of PGD says of its batch 1 what no attack would say; it stays."""
    store, found = jobs
    task = Task.of(found["pgd"], store)
    labels = LabelledSet.load(task.inputs["labelled"]).splits["test"][1]
    kept = {"rows": 10, "name": "PGD-3 (2 restarts)", "labels": labels[10:20].tolist()}
    kept |= {"correct": [1, 0] * 5, "signs": [], "by_square": 0}
    kept |= {"seconds": 1000.0, "peak_pss_bytes": 1, "pid": 1}
    write_atomic(task.folder / NOTES / "00001.json", json.dumps(kept))
    context = StageContext(store, load_config("digits").runtime)
    STAGES["evaluate"].run([found["clean"], found["pgd"]], context)
    flags = read_flags(task.folder)
    assert flags[10:20].tolist() == [True, False] * 5
    model = load_classifier(task.inputs["classifier"])
    images, y = LabelledSet.load(task.inputs["labelled"]).tensors("test")
    for part in (0, 2):
        rows = slice(10 * part, 10 * part + 10)
        x = unit_float(images[rows]).contiguous(memory_format=torch.channels_last)
        expected = attack_batch("pgd", model, x, y[rows], task.job.config, 10 * part)
        assert np.array_equal(flags[rows], expected.flags.numpy())
    record = store.record(found["pgd"])
    assert record is not None and record["actor_seconds"] > 1000 and record["blocks"] == 3
    assert not (task.folder / NOTES).exists()
