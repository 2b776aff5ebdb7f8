"""The bench of the mixture, tiny: its lines, and the log-likelihood it notes."""

from __future__ import annotations

import pytest

from ssat_ray.bench import gmm


@pytest.mark.ray
def test_lines_and_quality() -> None:
    lines = gmm.run(rows=5000, width=6, k=4, threads=2, repeats=1)
    kinds = [line.what.split(", ")[1] for line in lines]
    assert kinds == ["diag"] * 4 + ["tied", "tied", "full", "full"]
    assert [line.bar for line in lines] == [3.0, None, 3.0, None, None, None, None, None]
    assert [line.what.endswith("against float32") for line in lines[:4]] == [False, True] * 2
    for line in lines:
        assert min(line.ours + line.bare) > 0
        assert abs(float(line.notes["log-likelihood difference"])) < 1e-3
