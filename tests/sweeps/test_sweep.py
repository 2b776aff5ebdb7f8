"""Sweeps as a user runs them, through real Ray: sharing, failures, early stopping, Bayesian search."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from ssat_ray.config import RuntimeConfig
from ssat_ray.errors import UserError
from ssat_ray.plan import build_plan
from ssat_ray.store import RAY_TUNE, Store
from ssat_ray.sweeps.space import read_sweep
from ssat_ray.sweeps.sweep import _alone, batches, check_keys, concurrent

# -- without Ray ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "resources", "expected"),
    [
        ({}, {"CPU": 2.0}, 1),
        ({}, {"CPU": 9.0}, 4),
        ({"train_workers": 1, "actors": 4}, {"CPU": 9.0}, 2),
        ({"train_workers": 2, "cpus_per_worker": 3}, {"CPU": 18.0}, 3),
        ({"train_workers": (1, 4)}, {"CPU": 8.0}, 2),
        ({"gpus_per_worker": 1}, {"CPU": 64.0, "GPU": 8.0}, 4),
        ({"gpus_per_actor": 0.5, "actors": 8}, {"CPU": 64.0, "GPU": 8.0}, 2),
        ({}, {"CPU": 1.0}, 1),
    ],
)
def test_trials_at_once(
    settings: dict[str, Any], resources: dict[str, float], expected: int
) -> None:
    assert concurrent(RuntimeConfig(**settings), resources) == expected


@pytest.mark.parametrize(
    ("number", "size", "at_once", "expected"),
    [
        (20, 5, 1, [5, 5, 5, 5]),
        (20, 5, 8, [2, 3, 2, 3, 2, 3, 2, 3]),
        (7, 5, 1, [3, 4]),
        (3, 5, 8, [1, 1, 1]),
        (3, 1, 1, [1, 1, 1]),
        (1, 5, 1, [1]),
    ],
)
def test_batches_are_equal_and_enough_for_the_cluster(
    number: int, size: int, at_once: int, expected: list[int]
) -> None:
    points: list[Any] = list(range(number))
    found = batches(points, size, at_once)
    assert [len(batch) for batch in found] == expected
    assert [point for batch in found for point in batch] == points, "in their order"


@pytest.mark.parametrize(
    ("row", "space", "idle"),
    [
        ("pcs", {"cluster.k": [5, 10], "select.ratio": [0.1, 0.2]}, "cluster.k"),
        ("random", {"select.boundary_fraction": [0.2, 0.4]}, "select.boundary_fraction"),
        ("lcs-km", {"finetune.weight": [0.1, 0.2], "cluster.k": [5, 10]}, "finetune.weight"),
        ("lcs-km", {"cluster.k": [5, 10], "select.ratio": [0.1, 0.2]}, None),
        ("lcs-km", {"cluster.k": [5]}, None),
        (None, {"row": ["pcs", "lcs-km"], "cluster.k": [5, 10]}, None),
        ("pcs", {"evaluate.pgd_steps": [10, 20]}, None),
    ],
)
def test_a_key_that_changes_nothing_is_refused(
    tmp_path: Path, row: str | None, space: dict[str, Any], idle: str | None
) -> None:
    path = tmp_path / "sweep.yaml"
    file = {"preset": "digits", "row": row, "baselines": ["random"], "space": space}
    path.write_text(yaml.safe_dump({key: value for key, value in file.items() if value}))
    found = read_sweep(path)
    plans = {point.name: build_plan(point.config) for point in found.points}
    if idle is None:
        check_keys(found, plans)
    else:
        with pytest.raises(UserError, match=rf"{idle} changes nothing of {row}"):
            check_keys(found, plans)


RANGES = {"cluster.k": {"integer": [5, 40]}, "select.ratio": {"uniform": [0.1, 0.4]}}


@pytest.mark.parametrize("search", ["random", "bayesian"])
def test_it_is_refused_whatever_the_search(tmp_path: Path, search: str) -> None:
    """Whose points hardly ever differ in one key alone, or are not known yet."""
    path = tmp_path / "sweep.yaml"
    file = {"preset": "digits", "search": search, "trials": 3, "space": RANGES}
    path.write_text(yaml.safe_dump({**file, "row": "pcs"}))
    with pytest.raises(UserError, match=r"cluster\.k changes nothing of pcs"):
        check_keys(read_sweep(path), {})
    path.write_text(yaml.safe_dump({**file, "row": "lcs-km"}))
    check_keys(read_sweep(path), {})
    only = {"finetune.centroids": ["global", "per-class"], "finetune.k_per_class": [3, 5]}
    path.write_text(yaml.safe_dump({**file, "row": "lcg-km", "space": only}))
    check_keys(read_sweep(path), {})  # it does where centroids are by class


def test_one_process_at_a_time_runs_a_sweep(tmp_path: Path) -> None:
    folder, store = tmp_path / "runs/one", Store(tmp_path / "store")
    refused = pytest.raises(UserError, match="another process runs the sweep")
    with _alone(folder, store), _alone(tmp_path / "runs/two", store), refused:
        _alone(folder, Store(tmp_path / "other")).__enter__()
    with _alone(folder, store) as scratch:
        assert scratch.exists()
    assert not scratch.exists()
    assert [path.name for path in (store.root / RAY_TUNE).iterdir()] == [".lease.lock"]


# -- as a user runs it ------------------------------------------------------------------------------------


@pytest.mark.ray
@pytest.mark.slow
def test_a_grid_ends_with_its_table_and_the_same_command_does_nothing(
    swept: Any,
) -> None:
    sweep = swept(baselines=["full"])
    output = sweep.run()
    assert "2 of 2 have ended" in output and "MLflow: http://127.0.0.1:" in output
    assert "2 settings x 1 seed in 1 batch, 1 at once" in output
    page = sweep.cwd / "runs/sweep/compare.html"
    assert "compare.html (ssat compare sweep)" in output and "recommended: " in output
    assert page.read_text().startswith("<!doctype html>")
    first, second = sweep.trials
    assert {first["status"], second["status"]} == {"finished"}
    assert (
        first["results"]["random"]["images"] == 40 and second["results"]["random"]["images"] == 80
    )
    assert first["results"]["full"]["accuracy"] == second["results"]["full"]["accuracy"]
    sharing = sweep.content["sharing"]
    counted = ("artefacts", "references", "begun", "finished")
    assert [sharing["synth"][name] for name in counted] == [1, 2, 1, 1]
    assert [sharing["train"][name] for name in counted] == [3, 4, 3, 3]
    assert "none was computed twice" in output
    records = [json.loads(path.read_text()) for path in sweep.cwd.glob("store/train/*/stage.json")]
    groups = {tuple(record["worker_pids"]) for record in records}
    assert len(records) == 3 and len(groups) == 1, "a batch starts one worker group"
    assert sum(record["startup_seconds"] > 1 for record in records) == 1
    for trial in (first, second):
        names = {path.name for path in (sweep.cwd / "runs/sweep" / trial["name"]).iterdir()}
        assert {"run.json", "results.json", "report.html", "run.log"} <= names
    store = sweep.cwd / "store"
    assert list((store / "ray-train").iterdir()) == [], "what groups wrote is removed"
    assert [p for p in (store / RAY_TUNE).iterdir() if p.is_dir()] == []
    before, since = sweep.trials, time.perf_counter()
    output = sweep.run()
    assert sweep.trials == before and "started" not in output
    assert time.perf_counter() - since < 60
    command = [sys.executable, "-m", "ssat_ray", "bench", "sharing", "sweep", "--sample", "1"]
    bench = subprocess.run(command, cwd=sweep.cwd, capture_output=True, text=True, timeout=600)
    assert bench.returncode == 0, bench.stdout + bench.stderr
    assert "| sweep, 2 trials of 1 seeds |" in bench.stdout and "| 1.67 |" in bench.stdout
    assert not list((sweep.cwd / "runs").glob(".bench-*")), "nothing is left"


@pytest.mark.slow
def test_trials_that_start_at_the_same_moment_compute_what_they_share_once(
    swept: Any,
) -> None:
    """Each is a batch of its own, so both want the baseline; the selections have been made before."""
    one_each = {"runtime.train_workers": 1, "runtime.actors": 1, "runtime.num_cpus": 2}
    sweep = swept(baselines=["full"], batch=1, concurrent=2, set=one_each)
    output = sweep.run()
    assert [t["status"] for t in sweep.trials] == ["finished"] * 2
    starts = [output.index(f"select.ratio={ratio}: started") for ratio in (0.1, 0.2)]
    assert max(starts) < output.index("have ended"), "they ran at once"
    for stage, entry in sweep.content["sharing"].items():
        assert entry["begun"] == entry["finished"] == entry["artefacts"], stage
    assert sweep.content["sharing"]["train"]["artefacts"] == 3
    files = list(sweep.cwd.glob("runs/sweep/computations/*.json"))
    artefacts = sum(entry["artefacts"] for entry in sweep.content["sharing"].values())
    assert len(files) == artefacts, "no computation of anything else"


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 2])
def test_a_diverging_trial_is_stopped_early_and_marked(swept: Any, batch: int) -> None:
    """Its second seed is not trained; the baseline is, for the other trial."""
    sweep = swept(
        space={"train.lr": [1.0e30, 0.1], "select.ratio": [0.1]},
        seeds=[0, 1],
        batch=batch,
    )
    output = sweep.run()
    assert [t["status"] for t in sweep.trials] == ["diverged", "finished"]
    assert sweep.trials[0]["cause"].startswith("train random seed 0: ")
    assert "NaN or infinite" in sweep.trials[0]["cause"] and "diverged" in output
    records = [json.loads(path.read_text()) for path in sweep.cwd.glob("store/train/*/stage.json")]
    assert {record["config"]["train"]["lr"] for record in records} == {0.1} and len(records) == 2
    notes = sorted(path.name for path in sweep.cwd.glob("store/train/*/failed.txt"))
    assert notes == ["failed.txt"], "the first seed's alone"
    before = sweep.trials
    sweep.run()
    assert sweep.trials == before, "it would diverge again"


@pytest.mark.slow
def test_a_diverging_baseline_fails_the_trials_and_is_trained_once_a_command(
    swept: Any,
) -> None:
    """It depends on no swept setting, which may be innocent. `none` has no images that the weight is of."""
    sweep = swept(
        row="none",
        baselines=["full"],
        set={"objective.pool_weight": 3.0e38},
        space={"train.none_recipes.half.lr": [0.05, 0.02]},
        batch=1,
    )

    def trained() -> list[str]:
        files = sweep.cwd.glob("runs/sweep/computations/*.json")
        labels = [json.loads(path.read_text())["job"] for path in files]
        return sorted(label for label in labels if label.startswith("train "))

    for command in (1, 2):
        output = sweep.run(code=1)
        assert [t["status"] for t in sweep.trials] == ["failed", "failed"]
        causes = {t["cause"] for t in sweep.trials}
        assert len(causes) == 1 and next(iter(causes)).startswith("train full seed 0: ")
        assert "NaN or infinite" in output
        assert trained().count("train full seed 0") == command, "not by each trial"
        assert trained().count("train none seed 0 recipe half") == 1, "the second one's is in vain"


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["ray::Runner", "RayTrainWorker"])
def test_a_failing_trial_leaves_the_others_alone_and_is_tried_again(
    swept: Any, moment: str
) -> None:
    """The process that runs its pipeline is killed before it has a worker group, or while that works."""
    sweep = swept(batch=1)
    process = sweep.start()
    named: dict[str, list[psutil.Process]] = {}
    while not all(named.get(name) for name in ("ray::Runner", moment)):
        assert process.poll() is None, sweep.output()
        with contextlib.suppress(psutil.Error):
            children = psutil.Process(process.pid).children(recursive=True)
            lines = [(child, " ".join(child.cmdline())) for child in children]
            for name in ("ray::Runner", moment):
                named[name] = [child for child, line in lines if name in line]
        time.sleep(0.02)
    named["ray::Runner"][0].kill()
    assert process.wait(1800) == 1, sweep.output()
    output = sweep.output()
    failed, finished = sweep.trials
    assert (failed["status"], finished["status"]) == ("failed", "finished")
    assert failed["cause"].startswith("the trial's process died: ") and failed["results"] is None
    assert failed["cause"] in " ".join(output.split()) and "tries again" in output
    sweep.run()
    mended, same = sweep.trials
    assert (mended["status"], mended["cause"]) == ("finished", None) and same == finished


@pytest.mark.slow
def test_batches_whose_processes_die_leave_the_others_their_cpus(swept: Any) -> None:
    """Two batches at once on two CPUs; both die while they train, and the third finishes."""
    sweep = swept(batch=1, concurrent=2, space={"select.ratio": [0.1, 0.2, 0.4]})
    process = sweep.start()
    killed: set[int] = set()
    while len(killed) < 2:
        assert process.poll() is None, sweep.output()
        with contextlib.suppress(psutil.Error):
            children = psutil.Process(process.pid).children(recursive=True)
            lines = {child: " ".join(child.cmdline()) for child in children}
            if any("RayTrainWorker" in line for line in lines.values()):
                for child in [c for c, line in lines.items() if "ray::Runner" in line][:1]:
                    child.kill()
                    killed.add(child.pid)
        time.sleep(0.05)
    assert process.wait(1800) == 1, sweep.output()
    assert sorted(sweep.statuses) == ["failed", "failed", "finished"]
    sweep.run()
    assert sweep.statuses == ["finished"] * 3


@pytest.mark.slow
def test_early_stopping_stops_settings_and_changes_no_bit_of_the_others(
    swept: Any,
) -> None:
    space = {"train.lr": [0.1, 1.0e-7], "objective.beta": [1.0]}
    plain = swept(space={**space, "train.lr": [0.1]}, seeds=[0, 1])
    plain.run()
    sweep = swept(space=space, seeds=[0, 1], stopping={"asha": {"grace": 20, "reduction": 2}})
    sweep.run()
    good, bad = sweep.trials
    assert [step for step, _ in good["reports"]] == [20, 40]
    assert good["status"] == "finished" and sweep.outcomes[0][2] == plain.outcomes[0][2]
    assert (bad["status"], bad["step"], bad["results"]) == ("stopped", 20, None)
    before = sweep.trials
    sweep.run()
    assert sweep.trials == before, "what was stopped is not run again"


@pytest.mark.slow
def test_a_bayesian_search_runs_different_points_and_refused_ones_are_failed_trials(
    swept: Any,
) -> None:
    """Of five points two are refused, so of four trials one at least is, and two are not."""
    sweep = swept(
        search="bayesian",
        trials=4,
        objectives=["validation", "images"],
        set={"train.bn_group": 2},
        space={"train.batch_size": {"integer": [32, 36]}, "select.ratio": [0.1]},
    )
    output = sweep.run(code=1)
    assert "4 of 4 have ended" in output
    by_size = {t["settings"]["train.batch_size"]: t["status"] for t in sweep.trials}
    assert len(by_size) == 4 and by_size == {
        size: "failed" if size % 2 else "finished" for size in by_size
    }
    assert {"failed", "finished"} == set(by_size.values())
    refused = [t for t in sweep.trials if t["status"] == "failed"]
    assert all("bn_group" in t["cause"] and t["name"].startswith("refused-") for t in refused)
    before = sweep.trials
    assert "started" not in sweep.run(code=1) and sweep.trials == before
