"""Orders, numbers and sentences that every view of the results shares."""

import pytest

from ssat_ray.report import words
from ssat_ray.report.words import duration, power_of_ten, signed, size, verdict


def test_the_verdict_follows_the_intervals(results):
    content = results()
    rows = {row["row"]: row for row in content["rows"]}
    full, selector = rows["full"]["differences"]["none"], rows["lcs-km"]["differences"]["random"]
    first = verdict(content)
    assert "raises PGD-40 robust accuracy" in first
    assert "there is no difference that 95 % settles" in first
    assert "better than a random choice" not in first
    full |= {"low": -0.1}
    selector |= {"mean": 1.5, "low": 0.2, "high": 2.9}
    second = verdict(content)
    assert "raises" not in second
    assert "no difference in PGD-40 robust accuracy that 95 % settles" in second
    assert "better than a random choice of the same size: lcs-km (+1.5 points" in second
    full |= {"mean": -2.0, "low": -3.0, "high": -1.0}
    selector |= {"mean": -1.5, "low": -2.9, "high": -0.2}
    third = verdict(content)
    assert "lowers PGD-40 robust accuracy" in third
    assert "worse than a random choice of the same size: lcs-km" in third


def test_an_interval_that_touches_zero_settles_nothing(results):
    content = results(rows=("none", "full"))
    content["rows"][1]["differences"]["none"] |= {"low": 0.0}
    assert "no difference" in verdict(content)


def test_the_verdict_says_what_it_cannot_know(results):
    single = results(seeds=(0,))
    assert "single seed" in verdict(single)
    assert "test images only" in verdict(single)
    assert "single seed" not in verdict(results())
    alone = verdict(results(rows=("none", "full")))
    assert "no selector was compared with a random choice" in alone
    assert "was not measured" in verdict(results(rows=("none", "random")))
    assert "paired" not in verdict(_unpaired(results()))


def _unpaired(content):
    for row in content["rows"]:
        for difference in row["differences"].values():
            difference["paired"] = False
    return content


def test_numbers_as_people_read_them():
    assert [duration(s) for s in (None, 0.42, 9.7, 41.4, 59.7, 200, 3900)] == [
        "–",
        "0.42 s",
        "9.7 s",
        "41 s",
        "1 min 00 s",
        "3 min 20 s",
        "1 h 05 min",
    ]
    assert [size(b) for b in (None, 0, 900, 1024, 640000, 1.4e9)] == [
        "–",
        "0 B",
        "900 B",
        "1 KiB",
        "625 KiB",
        "1.3 GiB",
    ]
    assert [signed(p) for p in (1.24, -0.3, 0.04, -0.04)] == ["+1.2", "−0.3", "0.0", "0.0"]
    assert power_of_ten(3.14e12) == "3.1 × 10¹²"


@pytest.mark.parametrize(
    ("share", "shown"),
    [(1.0, "100"), (0.9996, "100"), (0.1, "10"), (0.12345, "12.3"), (0.0, "0"), (12.0, "1200")],
)
def test_shares_have_three_digits(share, shown):
    assert words.percent(share) == f"{shown}\N{NO-BREAK SPACE}%"


def test_small_shares_and_absent_ones():
    assert words.percent(1.2e-7) == "0.000012\N{NO-BREAK SPACE}%"
    assert words.percent(-0.05) == "\N{MINUS SIGN}5\N{NO-BREAK SPACE}%"
    assert words.percent(None) == "–"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (2.14123, "2.141"),
        (-41.256, "\N{MINUS SIGN}41.26"),
        (0.0, "0"),
        (3.2071e8, "3.207 × 10⁸"),
        (-1.5e-7, "\N{MINUS SIGN}1.5 × 10⁻⁷"),
        (None, "–"),
    ],
)
def test_measured_values_have_four_digits(value, shown):
    assert words.number(value) == shown


def test_intervals_in_plain_text_have_plain_signs():
    entry = {"mean": -0.44, "low": -1.5, "high": 0.61}
    assert words.interval(entry, sign=True) == "-0.4 [-1.5, +0.6]"
    assert words.interval({"mean": 83.37, "low": 82.4, "high": 85.4}) == "83.4 [82.4, 85.4]"


@pytest.mark.parametrize(
    ("hit", "expected"),
    [
        ([False, False], ("1,300", "")),
        ([True, False], ("≥ 1,300", "limit 1/2")),
        ([True, True], ("≥ 1,300", "limit")),
    ],
)
def test_steps_at_the_limit_are_a_bound(hit, expected):
    row = {"steps": {"total": [1200, 1400], "plateau": [960, 1120], "hit_max_steps": hit}}
    assert words.steps(row, "total", ",") == expected
    assert words.steps(row, "plateau", ",")[0].endswith("1,040")


def test_a_schedule_with_an_end_has_no_plateau():
    row = {"steps": {"total": [100], "plateau": [None], "hit_max_steps": [False]}}
    assert words.steps(row, "plateau") == ("–", "") and words.steps(row, "total") == ("100", "")


def test_notes_are_there_only_where_they_say_something(results):
    content = results(seeds=(0,))
    content["rows"][1]["seconds_all_recipes"] += 1e-12  # rounding is no search
    assert words.notes(content) == []
    content["rows"][0]["seconds_all_recipes"] += 30
    content["rows"][2]["steps"]["hit_max_steps"] = [True]
    limit, search = words.notes(content)
    assert limit.startswith("≥ (limit): train.max_steps")
    assert search == "Choosing none's recipe took 30 s more; the row's time does not count it."
    content["stages"][0] |= {"label": "pool seed 3", "label_agreement": 0.9876}
    assert words.notes(content)[2:] == [
        "pool seed 3: 98.8 % of the images are, to the intermediate model that labels them, of the class "
        "that was asked for."
    ]


def test_the_largest_stage_is_named():
    peaks = {"generate": 5.0, "train": 3.0, "max": 5.0}
    assert words.peak_memory({"peak_memory_bytes": peaks}) == (5.0, "generate")
    assert words.peak_memory({"peak_memory_bytes": {"max": 5.0}}) == (5.0, "")


def test_commits_and_machines_in_one_line():
    assert words.short_commit("0123456789abcdef-dirty") == "0123456789-dirty"
    assert words.short_commit("0123456789abcdef") == "0123456789"
    assert words.short_commit(None) == "unknown"
    machine = {
        "host": "a",
        "platform": "Linux",
        "cores": 2,
        "cpu": "EPYC",
        "memory_gib": 23.5,
        "versions": {},
    }
    assert words.machine_name(machine) == "EPYC, 2 cores, 23.5 GiB, Linux, host a"
    assert words.machine_name("EPYC") == "EPYC"
    assert words.machine_name(None) == "unknown"


def test_orders_agree_with_the_pipeline_and_the_attacks():
    from ssat_ray.adversarial import evaluation
    from ssat_ray.plan import STAGES

    assert [stage for stage in STAGES if stage in words.STAGES] == list(words.STAGES)
    assert words.ATTACKS == evaluation._KEYS
    assert set(words.ABOUT) == set(words.ROWS) >= set(words.SELECTORS)


def test_unknown_rows_and_stages_come_last(results):
    rows = results()["rows"][::-1]
    rows[0]["row"] = "mine"
    rows[0]["seconds"] = {"own": 1.0, **rows[0]["seconds"]}
    names = [row["row"] for row in words.in_order(rows)]
    assert (names[0], names[-1]) == ("none", "mine")
    unused = ("pool", "checkpoint", "ddpm", "synth", "finetune")
    known = [stage for stage in words.STAGES if stage not in unused]
    assert words.stages_in(rows) == [*known, "own"]


def test_the_radius_in_both_norms():
    assert words.radius({"norm": "linf", "eps": 0.15}) == "eps 0.15"
    assert words.radius({"norm": "l2", "eps": 0.5}) == "eps 0.5 (L2)"
    assert words.bound({"norm": "linf", "eps": 0.15}) == "each pixel changes by at most 0.15"
    assert "add up to at most 0.5²" in words.bound({"norm": "l2", "eps": 0.5})


def test_classes_have_cells_unless_they_are_many():
    entry = {"by_class": [60.04, None, 51.26], "worst_class": 2}
    row = {"accuracy": {"pgd": entry}}
    assert words.class_cells(row) == ["51.3 (class 2)", "60.0", "–", "51.3"]
    assert list(words.shown_classes(row)) == [0, 1, 2]
    entry |= {"by_class": [50.0] * 20 + [3.0], "worst_class": 20}
    assert words.class_cells(row) == ["3.0 (class 20)"]
