"""evaluate: flags of a real run equal the attacks called directly, chunk by chunk."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ssat_ray.adversarial.autoattack import apgd_ce_flags
from ssat_ray.adversarial.evaluation import clean_flags, pgd_flags
from ssat_ray.data.labelled import LabelledSet, unit_float
from ssat_ray.models.files import load_classifier
from ssat_ray.stages.evaluate import read_flags

pytestmark = pytest.mark.ray


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
        "apgd-ce": lambda x, y, _: apgd_ce_flags(
            model, x, y, eps=eps, num_steps=options.apgd_steps, seed=0, batch_size=200
        ),
    }
    for attack, call in direct.items():
        flags = torch.cat([call(x[a : a + 200], y[a : a + 200], a) for a in range(0, len(y), 200)])
        found = read_flags(folder(tiny_run, row, f"evaluate:{attack}"))
        assert np.array_equal(found, flags.numpy()), attack
