"""The Markdown table of the README."""

from __future__ import annotations

from typing import Any

from ssat_ray.report.markdown import markdown_table


def entry(mean: float, seeds: list[int], name: str) -> dict[str, Any]:
    return {"mean": mean, "low": mean - 1, "high": mean + 2, "seeds": seeds, "name": name}


def test_table_has_every_number_and_names_fewer_seeds() -> None:
    row = {
        "row": "lcs-km",
        "seeds": [0, 1],
        "images": {"labelled": 300, "pool": 2000},
        "accuracy": {
            "clean": entry(98.21, [0, 1], "clean"),
            "pgd": entry(83.37, [0, 1], "PGD-40"),
            "autoattack": entry(81.5, [0], "AutoAttack"),
        },
        "differences": {"random": {"mean": -0.44, "low": -1.5, "high": 0.61}},
        "steps": {"total": [500, 601]},
        "seconds": {"total": 321.4},
        "peak_memory_bytes": {"max": 900 * 2**20},
    }
    baseline = {**row, "row": "random", "differences": {}}
    results = {
        "rows": [baseline, row],
        "seeds": [0, 1],
        "eps": 0.15,
        "data": {"num_test": 797},
        "machine": {
            "cpu": "EPYC",
            "cores": 2,
            "memory_gib": 24,
            "versions": {"torch": "2.14.1", "ray": "2.60.0"},
        },
        "created": "2026-11-21T10:00:00+00:00",
        "git_commit": "0123456789abcdef",
    }
    lines = markdown_table(results).splitlines()
    assert lines[0].count("|") == lines[1].count("|") == lines[3].count("|")
    assert "AutoAttack % (seed 0)" in lines[0]
    assert "PGD-40 % |" in lines[0]
    for expected in (
        "`lcs-km`",
        "2,300",
        "83.4 [82.4, 85.4]",
        "-0.4 [-1.5, +0.6]",
        "550",
        "321",
        "900",
    ):
        assert expected in lines[3]
    assert "EPYC, 2 cores" in lines[-1]
    assert "0123456789" in lines[-1]
