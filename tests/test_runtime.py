"""Meter, commit and threads."""

from __future__ import annotations

import re
import time

import numpy as np
import torch

from ssat_ray.runtime import Meter, git_commit, use_threads


def test_meter_sees_time_and_memory() -> None:
    with Meter(interval=0.01) as before:
        time.sleep(0.05)
    with Meter(interval=0.01) as after:
        block = np.ones(30_000_000)
        time.sleep(0.1)
    assert 0.05 <= before.seconds < 1
    assert after.peak_pss - before.peak_pss > 0.8 * block.nbytes


def test_git_commit_is_a_hash() -> None:
    commit = git_commit()
    assert commit is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", commit)


def test_use_threads() -> None:
    found = torch.get_num_threads()
    use_threads(1)
    assert torch.get_num_threads() == 1
    use_threads(found)
