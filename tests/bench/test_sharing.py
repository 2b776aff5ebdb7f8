"""bench sharing: the sum of the sweep's commands against as many independent runs as it has trials."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ssat_ray.bench.sharing import compare, run
from ssat_ray.errors import UserError

CONTENT: dict[str, Any] = {
    "name": "grid",
    "seeds": [0, 1],
    "sessions": [{"started": 0.0, "seconds": 300.0}, {"started": 900.0, "seconds": 100.0}],
    "trials": [{"name": str(i), "status": "finished"} for i in range(4)]
    + [{"name": "x", "status": "stopped"}],
}


def test_all_commands_count_and_only_finished_trials() -> None:
    found = compare(CONTENT, [200.0, 210.0, 400.0])
    assert found.ours == [400.0] and found.bare == [4 * 270.0]
    assert found.ratio == pytest.approx(2.7) and found.notes["share of independent runs"] == "0.37"
    assert found.bar is not None and found.bar >= 1 / 0.6
    assert found.what == "grid, 4 trials of 2 seeds" and found.notes["commands"] == "2"


def test_what_is_no_sweep_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="it is no sweep"):
        run("grid", tmp_path)
    (tmp_path / "grid").mkdir()
    (tmp_path / "grid/sweep.json").write_text('{"trials": [{"name": "a", "status": "failed"}]}')
    with pytest.raises(UserError, match="none of its trials has finished"):
        run("grid", tmp_path)
    sessions = [{"seconds": 1.0, "complete": False}, {"seconds": 9.0, "complete": True}]
    killed = {"trials": [{"name": "a", "status": "finished"}], "sessions": sessions}
    (tmp_path / "grid/sweep.json").write_text(json.dumps(killed))
    with pytest.raises(UserError, match="one of its commands was killed"):
        run("grid", tmp_path)
