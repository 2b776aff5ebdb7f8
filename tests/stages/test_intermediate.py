"""intermediate: the classifier has learnt."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.ray


def test_intermediate_has_learnt(tiny_run: Any) -> None:
    record = tiny_run.store.record(tiny_run.plan.jobs["pcs", 0, "intermediate"])
    assert record["val_clean"] > 50
    assert np.isfinite(json.loads(json.dumps(record["history"]))[-1]["loss"])
