"""The bench of the choice, tiny: real processes on both sides, a deterministic table, nothing left."""

import numpy as np
import pytest

from ssat_ray.bench import select
from ssat_ray.bench.select import CASES, run, write_table
from ssat_ray.selection.table import ScoreTable, score_files


@pytest.mark.slow  # tests/test_bench_cli.py runs it too
def test_run_compares_both_sides_in_every_case_and_removes_the_table(tmp_path):
    found = run(rows=20_000, repeats=1, folder=tmp_path)
    assert [row.what for row in found] == [f"20,000 scores, {case}" for case in CASES]
    for row in found:
        assert len(row.ours) == len(row.bare) == 1
        assert min(row.ours + row.bare) > 0
        ours, bare = (float(part.split()[-1]) for part in row.notes["peak GiB"].split(","))
        # An interpreter with NumPy and PyArrow, and nothing of this one, which may hold torch.
        assert 0.03 < ours < 0.4
        assert 0.03 < bare < 0.4
        assert row.notes["page cache"] == "warm"
    assert list(tmp_path.iterdir()) == []


def test_table_is_deterministic_ascends_and_holds_copies(tmp_path, monkeypatch):
    monkeypatch.setattr(select, "SHARD_ROWS", 3000)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        write_table(tmp_path / name, 10_000)
    files = [score_files(tmp_path / name) for name in ("first", "second")]
    assert [a.read_bytes() for a in files[0]] == [b.read_bytes() for b in files[1]]
    table = ScoreTable(files[0])
    assert (len(files[0]), table.num_rows) == (4, 10_000)
    chunks = list(table.read(["id", "hash"]))
    assert (np.diff(np.concatenate([chunk["id"] for chunk in chunks])) > 0).all()
    num_copies = 10_000 - len(np.unique(np.concatenate([chunk["hash"] for chunk in chunks])))
    assert 80 <= num_copies <= 100


def test_sides_that_differ_are_no_result():
    ours = {"rows": 10, "cut": 1.0}
    select._check("plain", ours, dict(ours))
    for bare in ({"rows": 11, "cut": 1.0}, {"rows": 10, "cut": 1.001}):
        with pytest.raises(AssertionError, match="plain: "):
            select._check("plain", ours, bare)
