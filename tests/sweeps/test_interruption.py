"""Sweeps that are killed, and an MLflow server that goes away in mid-sweep, through real Ray."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import mlflow
import pytest

from ssat_ray.sweeps.server import serve
from ssat_ray.tracking import EXPERIMENT

pytestmark = pytest.mark.slow


def test_killed_three_times_it_ends_with_the_same_table(swept: Any) -> None:
    file = {"space": {"select.ratio": [0.1, 0.2, 0.3]}, "baselines": ["full"], "batch": 2}
    whole, killed = swept(**file), swept(**file)
    whole.run()
    store = killed.cwd / "store"
    killed.kill_when(lambda: any(store.glob("select/*/stage.json")))
    killed.kill_when(lambda: any(store.glob("train/*/state/*.pt")))
    killed.kill_when(lambda: {"finished", "running"} <= set(killed.statuses))
    finished = [t for t in killed.trials if t["status"] == "finished"]
    killed.run()
    assert killed.outcomes == whole.outcomes
    assert all("full" in results["random"]["differences"] for _, _, results in killed.outcomes)
    sharing = killed.content["sharing"]
    assert all(entry["finished"] == entry["artefacts"] for entry in sharing.values())
    assert sharing["train"]["begun"] > sharing["train"]["finished"], "some were killed"
    for trial in finished:
        assert trial in killed.trials, "it keeps its result, its seconds too"


def test_killed_under_asha_every_ended_trial_keeps_its_result_and_none_runs_twice(
    swept: Any,
) -> None:
    sweep = swept(
        space={"train.lr": [0.1, 0.05, 1.0e-7, 0.02], "objective.beta": [1.0]},
        seeds=[0, 1],
        stopping={"asha": {"grace": 20, "reduction": 2}},
    )
    ended: dict[str, Any] = {}

    def check(output: str) -> None:
        """Nothing that had ended before this command was started by it, or has changed."""
        for name, trial in ended.items():
            settings = " ".join(f"{key}={value}" for key, value in trial["settings"].items())
            assert f"{settings}: started" not in output
            assert next(t for t in sweep.trials if t["name"] == name) == trial
        over = [t for t in sweep.trials if t["status"] in ("finished", "stopped")]
        ended.update({t["name"]: t for t in over})

    def at_a_rung() -> bool:
        running = [t for t in sweep.trials if t["status"] == "running"] if sweep.statuses else []
        return any(t["reports"] for t in running)

    check(sweep.kill_when(at_a_rung))
    check(sweep.kill_when(lambda: {"finished", "running"} <= set(sweep.statuses)))
    before = len(ended)
    check(
        sweep.kill_when(
            lambda: len([s for s in sweep.statuses if s in ("finished", "stopped")]) > before
        )
    )
    assert 0 < len(ended) < 4, "there was something to keep, and something left to do"
    check(sweep.run())
    assert len(ended) == 4 and {t["status"] for t in ended.values()} == {"finished", "stopped"}
    assert all(t["reports"] for t in ended.values()), "those that were killed too have reported"
    found = sweep.content["sharing"]["train"]
    assert found["finished"] == found["artefacts"]
    stopped = [name for name, trial in ended.items() if trial["status"] == "stopped"]
    for name in stopped:
        path = sweep.cwd / "runs/sweep" / name / "histories.json"
        histories = json.loads(path.read_text()).values()
        assert len(histories) == 2 and all(h[-1]["val_pgd"] >= 0 for h in histories)


def test_a_killed_bayesian_search_goes_on_where_it_was(swept: Any) -> None:
    sweep = swept(
        search="bayesian",
        trials=3,
        objectives=["validation", "images"],
        space={"select.ratio": {"log_uniform": [0.1, 0.4]}},
    )
    sweep.kill_when(lambda: {"finished", "running"} <= set(sweep.statuses))
    first, second = sweep.trials
    output = sweep.run()
    assert sweep.statuses == ["finished"] * 3
    assert sweep.trials[0] == first and sweep.trials[1]["settings"] == second["settings"]
    assert "2 settings x 1 seed" in output
    assert len({t["settings"]["select.ratio"] for t in sweep.trials}) == 3
    before = sweep.trials
    assert "started" not in sweep.run() and sweep.trials == before


AWAY = 60.0


def test_a_server_that_is_down_for_a_minute_in_mid_sweep_loses_no_metric(
    swept: Any, tmp_path: Path
) -> None:
    """It goes while the first trial runs, and comes back after that one has ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    uri = f"http://127.0.0.1:{port}"
    places = str(tmp_path / "mlflow.db"), str(tmp_path / "artifacts")
    quiet = subprocess.DEVNULL

    def start() -> subprocess.Popen[bytes]:
        found = serve(port, *places, stdout=quiet, stderr=quiet, start_new_session=True)
        for _ in range(600):
            try:
                mlflow.MlflowClient(uri).search_experiments()
                return found
            except Exception:
                time.sleep(0.5)
        raise AssertionError(f"{uri} never answered")

    sweep = swept(batch=1, set={"runtime.tracking_uri": uri})
    server = start()
    process = None
    try:
        process = sweep.start()
        while "running" not in sweep.statuses:
            assert process.poll() is None, sweep.output()
            time.sleep(0.05)
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        since = time.monotonic()
        while "finished" not in sweep.statuses or time.monotonic() - since < AWAY:
            assert process.poll() is None, sweep.output()
            time.sleep(0.2)
        server = start()
        assert process.wait(1200) == 0, sweep.output()
        assert "MLflow: it works again" in sweep.output()
        client = mlflow.MlflowClient(uri)
        found = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])
        runs = {run.info.run_name: run for run in found}
        assert len(found) == len(runs) == 3, "a parent, and each trial once"
        for trial in sweep.trials:
            run = runs[f"ratio={trial['settings']['select.ratio']} seed 0"]
            result = trial["results"]["random"]
            assert run.info.status == "FINISHED"
            assert run.data.metrics["test.pgd"] == result["accuracy"]["pgd"]["by_seed"][0]
            history = client.get_metric_history(run.info.run_id, "val_pgd")
            path = sweep.cwd / "store/train" / run.data.tags["digest.train"] / "stage.json"
            recorded = json.loads(path.read_text())["history"]
            assert [(m.step, m.value) for m in history] == [
                (entry["step"], entry["val_pgd"]) for entry in recorded
            ]
    finally:
        if process is not None and process.poll() is None:
            process.kill()
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
