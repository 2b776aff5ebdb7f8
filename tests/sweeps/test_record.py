"""sweep.json: what it holds after every event, and what the next command makes of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from ssat_ray.errors import UserError
from ssat_ray.sweeps.record import FILE, Record, objectives, summary

ROOT = Path(__file__).resolve().parents[2]


def written(invented: Any) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((invented.folder / FILE).read_text())
    return content


def test_trials_wait_in_the_order_of_the_search(invented: Any) -> None:
    record = invented.record()
    record.write()
    content = written(invented)
    assert [t["settings"] for t in content["trials"]] == [
        {"select.ratio": 0.1},
        {"select.ratio": 0.2},
    ]
    assert {t["status"] for t in content["trials"]} == {"waiting"}
    assert (content["kind"], content["name"], content["keys"]) == (
        "sweep",
        "invented",
        ["select.ratio"],
    )
    assert content["file"]["space"] == {"select.ratio": [0.1, 0.2]}
    assert [p.name for p in record.due] == [t["name"] for t in content["trials"]]


def test_every_event_is_on_disk_at_once(invented: Any) -> None:
    record, (first, second) = invented.record(), invented.space.points
    record.start(first.name)
    assert written(invented)["trials"][0]["status"] == "running"
    record.report(first.name, 40, 55.5)
    assert written(invented)["trials"][0]["reports"] == [[40, 55.5]]
    record.stop(first.name)
    stopped = written(invented)["trials"][0]
    assert (stopped["status"], stopped["step"], stopped["results"]) == ("stopped", 40, None)
    invented.publish(second, 70.0)
    record.start(second.name)
    record.finish(second.name)
    finished = written(invented)["trials"][1]
    assert finished["status"] == "finished" and finished["seconds"] >= 0
    assert finished["results"]["random"]["accuracy"]["pgd"]["mean"] == 70.0
    assert finished["results"]["full"]["images"] == 1000


def test_ended_trials_are_kept_and_others_wait_again(invented: Any) -> None:
    record, (first, second) = invented.record(), invented.space.points
    invented.publish(first, 70.0)
    record.start(first.name)
    record.finish(first.name)
    record.start(second.name)
    record.report(second.name, 40, 50.0)
    again = invented.record()  # the first command was killed here
    assert [p.name for p in again.due] == [second.name]
    assert again.trials[second.name]["reports"] == []
    assert again.trials[first.name] == record.trials[first.name]
    again.start(second.name)
    again.fail(second.name, "failed", "its disk was full")
    assert written(invented)["trials"][1]["cause"] == "its disk was full"
    third = invented.record()
    assert [p.name for p in third.due] == [second.name], "its cause may be mended"
    third.fail(second.name, "diverged", "NaN")
    assert invented.record().due == [], "it would diverge again"
    assert len(written(invented)["sessions"]) == 3


def test_a_finished_trial_without_its_folder_is_run_again(invented: Any) -> None:
    record, first = invented.record(), invented.space.points[0]
    invented.publish(first, 70.0)
    record.finish(first.name)
    (invented.folder / first.name / "results.json").unlink()
    assert first.name in [p.name for p in invented.record().due]


def test_a_trial_that_other_code_has_made_is_run_again(invented: Any) -> None:
    """Its configuration is the same, but a stage has another version: its digests are others."""
    invented.one_of_each()
    assert invented.record().due == []
    content = written(invented)
    for trial in content["trials"]:
        trial["digest"] = "0" * 20
    (invented.folder / FILE).write_text(json.dumps(content))
    again = invented.record()
    assert len(again.due) == 2
    assert all(trial["results"] is None and not trial["reports"] for trial in again.trials.values())


def test_trials_of_another_file_are_kept_aside(invented: Any) -> None:
    record = invented.one_of_each()
    for _ in range(2):
        other = invented.again("train.lr=0.01").record()
        other.write()
        assert {t["status"] for t in written(invented)["trials"]} == {"waiting"}
        assert len(written(invented)["former"]) == 2
    again = invented.again().record()
    assert again.trials == record.trials and again.content()["former"] == []


def test_a_command_that_was_killed_is_not_complete(invented: Any) -> None:
    invented.record().write()
    record = invented.record()
    record.complete = True
    record.write()
    assert [s["complete"] for s in written(invented)["sessions"]] == [False, True]


def test_a_grid_that_grows_keeps_its_trials(invented: Any) -> None:
    first = invented.space.points[0]
    invented.publish(first, 70.0)
    invented.record().finish(first.name)
    grown = invented.again(space={"select.ratio": [0.05, 0.1]}).record()
    assert [t["status"] for t in grown.trials.values()] == ["waiting", "finished"]
    other = invented.again("train.lr=0.01").record()
    assert [t["status"] for t in other.trials.values()] == ["waiting", "waiting"]


def test_a_bayesian_search_takes_up_its_own_trials(invented: Any) -> None:
    search = {"space": {"select.ratio": {"uniform": [0.1, 0.5]}}, "search": "bayesian", "trials": 3}
    bayesian = invented.again(**search)
    record, point = bayesian.record(), bayesian.space.point({"select.ratio": 0.3})
    record.add(point)
    record.start(point.name)
    again = bayesian.record()
    assert [p.name for p in again.due] == [point.name]
    assert invented.again("train.lr=0.01", **search).record().trials == {}
    narrower = {**search, "space": {"select.ratio": {"uniform": [0.4, 0.5]}}}
    assert invented.again(**narrower).record().trials == {}, "Optuna would refuse it"


BATCHES = {
    "space": {"train.batch_size": {"integer": [128, 256]}},
    "search": "bayesian",
    "trials": 4,
}
"""Both ends fit train.bn_group, and most of what is between them does not."""


def test_a_refused_point_is_a_failed_trial_that_no_command_runs(invented: Any) -> None:
    bayesian = invented.again(**BATCHES)
    record, refused = bayesian.record(), {"train.batch_size": 129}
    record.add(bayesian.space.point({"train.batch_size": 128}))
    assert record.left == 4
    with pytest.raises(UserError) as error:
        bayesian.space.point(refused)
    trial = record.refuse(refused, str(error.value))
    assert (trial["status"], trial["settings"], trial["row"]) == ("failed", refused, "random")
    assert trial["name"].startswith("refused-") and written(invented)["trials"][1] == trial
    again = bayesian.record()
    assert "bn_group" in again.trials[trial["name"]]["cause"]
    assert [p.settings for p in again.due] == [{"train.batch_size": 128}] and again.left == 3
    allowed = invented.again("train.bn_group=1", **BATCHES)
    assert allowed.record().trials == {}, "other settings, and a point that they allow"


def test_trials_that_are_due_are_run_after_the_number_was_lowered(invented: Any) -> None:
    search = {"space": {"select.ratio": {"uniform": [0.1, 0.5]}}, "search": "bayesian"}
    bayesian = invented.again(**search, trials=3)
    record = bayesian.record()
    done = [bayesian.space.point({"select.ratio": ratio}) for ratio in (0.1, 0.2)]
    for point in done:
        record.add(point)
        invented.publish(point, 70.0)
        record.finish(point.name)
    record.add(bayesian.space.point({"select.ratio": 0.3}))
    record.write()
    assert [invented.again(**search, trials=n).record().left for n in (1, 2, 3, 5)] == [1, 1, 1, 3]


def test_a_damaged_file_is_named(invented: Any) -> None:
    invented.folder.mkdir(parents=True)
    (invented.folder / FILE).write_text("{")
    with pytest.raises(UserError, match=r"sweep\.json is damaged"):
        invented.record()
    (invented.folder / FILE).write_text('{"schema": 99}')
    with pytest.raises(UserError, match="schema 99"):
        invented.record()


def test_objectives_are_not_of_the_test_set(result: Any) -> None:
    found = objectives(summary({"rows": [result("random", 70.0)]}), "random")
    assert found == {
        "validation": 61.0,
        "seconds": 7.0,
        "images": 1000.0,
        "memory": 20.0,
        "flops": 1e9,
    }


def test_the_document_names_every_field(invented: Any, result: Any) -> None:
    record = Record(invented.folder, invented.space)
    text = (ROOT / "docs/sweeps.md").read_text()
    tables = text[text.index("## sweep.json") :].split("\n\n")
    of_sweep, of_trial, of_row = (
        {name for cell in re.findall(r"^\| (`.+?) \|", table, re.M) for name in _quoted(cell)}
        for table in tables
        if table.startswith("| field")
    )
    assert set(record.content()) == of_sweep
    trial = next(iter(record.trials.values()))
    assert set(trial) | {"started"} == of_trial
    assert set(summary({"rows": [result("random", 70.0)]})["random"]) == of_row


def _quoted(text: str) -> list[str]:
    return re.findall(r"`(\w+)`", text)
