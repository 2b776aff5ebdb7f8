"""The Markdown table of the README."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ssat_ray.report.markdown import markdown_table


def entry(mean: float, seeds: list[int], name: str) -> dict[str, Any]:
    interval = {"mean": mean, "low": mean - 1, "high": mean + 2}
    classes = {"by_class": [mean + 5, None, mean - 7], "worst_class": 2}
    return {**interval, **classes, "seeds": seeds, "name": name}


def make_results() -> dict[str, Any]:
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
        "steps": {"total": [500, 601], "hit_max_steps": [False, False]},
        "seconds": {"total": 321.4},
        "seconds_train": [50.0, 60.0],
        "seconds_all_recipes": 55.0,
        "peak_memory_bytes": {"train": 7, "generate": 900 * 2**20, "max": 900 * 2**20},
    }
    baseline = {**row, "row": "random", "differences": {}}
    return {
        "rows": [baseline, row],
        "seeds": [0, 1],
        "norm": "linf",
        "eps": 0.15,
        "data": {"num_test": 797},
        "machine": {
            "cpu": "EPYC",
            "cores": 2,
            "memory_gib": 24,
            "versions": {"torch": "2.14.1", "ray": "2.60.0"},
        },
        "created": "2026-11-21T10:00:00+00:00",
        "git_commit": "0123456789abcdef-dirty",
    }


def test_table_has_every_number_and_names_fewer_seeds() -> None:
    lines = markdown_table(make_results()).splitlines()
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
        "900 (generate)",
    ):
        assert expected in lines[3]
    about = lines[5]
    assert "Seeds 0, 1; 95 % intervals over seeds and the 797 test images together" in about
    assert "EPYC, 2 cores" in about
    assert "commit 0123456789-dirty." in about


def test_classes_have_a_table_of_their_own() -> None:
    lines = markdown_table(make_results()).splitlines()
    assert lines[-6:] == [
        "PGD-40 accuracy by class, %:",
        "",
        "| row | worst | 0 | 1 | 2 |",
        "|---|---:|---:|---:|---:|",
        "| `random` | 76.4 (class 2) | 88.4 | – | 76.4 |",
        "| `lcs-km` | 76.4 (class 2) | 88.4 | – | 76.4 |",
    ]
    results = make_results()
    for row in results["rows"]:
        row["accuracy"]["pgd"] |= {"by_class": [50.0] * 99 + [3.0], "worst_class": 99}
    lines = markdown_table(results).splitlines()
    assert lines[-1] == "| `lcs-km` | 3.0 (class 99) |"


def test_one_seed_is_one_seed() -> None:
    results = make_results()
    results["seeds"] = [0]
    about = markdown_table(results).splitlines()[5]
    assert about.startswith("Seed 0; 95 % intervals over the 797 test images only; eps")


def test_limits_and_the_search_over_recipes_are_told() -> None:
    results = make_results()
    row = results["rows"][0]
    row["steps"], row["seconds_all_recipes"] = (
        {"total": [1000, 900], "hit_max_steps": [1, 0]},
        200.0,
    )
    lines = markdown_table(results).splitlines()
    assert "| ≥ 950 (limit 1/2) |" in lines[2]
    assert "| 550 |" in lines[3]
    assert lines[7].startswith("≥ (limit): train.max_steps")
    assert lines[9].startswith("Choosing random's recipe took 2 min 25 s more")


def test_guided_rows_have_tables_of_their_images(quality: Callable[[], dict[str, Any]]) -> None:
    """Means over seeds of what guide and judge say; other rows have none."""
    results = make_results()
    assert "Guided images" not in markdown_table(results)
    seeds = [quality() for _ in range(2)]
    seeds[0]["judge"]["near"], seeds[1]["judge"]["near"] = 0.4, 0.5
    results["rows"][1]["quality"] = seeds
    lines = markdown_table(results).splitlines()
    start = lines.index("Guided images, the base model's in brackets:")
    nearest = lines.index("Distance to the nearest training image, pixels in [0, 1], quantiles:")
    classes = lines.index("Images by most probable class, %:")
    assert [line.count("|") for line in lines[start + 2 : nearest - 1]] == [11] * 4
    assert lines[start + 4] == (
        "| `lcs-km` | the guide | 51.7 | 0.77 | 1.25 | 96.2 [98.5] | 0.720 [0.810] | 1.10 [1.21] "
        "| 0.940 [0.970] | 2.5 [1.5] |"
    )
    assert lines[start + 5].startswith("| `lcs-km` | a judge it never saw | 45.0 |")
    assert lines[nearest + 2 : classes - 1] == [
        "| images | 5 % | 25 % | median |",
        "|---|---:|---:|---:|",
        "| lcs-km | 0.5625 | 1.125 | 2.25 |",
        "| base model | 0.375 | 0.75 | 1.5 |",
        "| validation images | 0.75 | 1.5 | 3 |",
    ]
    assert [line.count("|") for line in lines[classes + 2 :]] == [13] * 8
    assert lines[classes + 4].startswith("| lcs-km | the guide | 7.0 | 7.0 |")
    assert lines[classes + 9].startswith("| real images | a judge it never saw | 10.0 |")


def test_what_is_not_known_of_guided_images_is_a_dash(
    quality: Callable[[], dict[str, Any]],
) -> None:
    """Agreement with labels that the judge gave itself; the classes of a set that has too many for columns."""
    seen, results = quality(), make_results()
    for judge in ("guide", "judge"):
        seen[judge]["base"]["score"]["0.5"] = 0.0
        for name in ("base", "guided", "real"):
            seen[judge][name] |= {"agreement": None, "classes": [1] * 21}
    results["rows"][1]["quality"] = [seen]
    text = markdown_table(results)
    assert "| the guide | 51.7 | 0.77 | – | – | 0.720 [0.810] |" in text
    assert "validation images" in text and "most probable class" not in text
