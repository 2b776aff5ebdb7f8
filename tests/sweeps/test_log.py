"""A sweep in MLflow: a parent, one run a trial and seed, nothing twice, nothing lost while the server is away."""

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

from ssat_ray.errors import UserError
from ssat_ray.loading import flatten
from ssat_ray.places import write_atomic
from ssat_ray.plan import build_plan
from ssat_ray.run_folder import PAGE
from ssat_ray.sweeps import log as logging
from ssat_ray.sweeps.log import Log
from ssat_ray.sweeps.record import HISTORIES
from ssat_ray.sweeps.server import Server, serve
from ssat_ray.sweeps.show import Lines
from ssat_ray.sweeps.tracker import SweepTracker
from ssat_ray.tracking import ARTIFACTS, DATABASE, EXPERIMENT


@pytest.fixture
def tracked(invented: Any) -> Any:
    """The sweep with a SQLite file of its own: the server's tests are slow."""
    invented.store.root.mkdir(parents=True)
    return invented.again(f"runtime.tracking_uri=sqlite:///{invented.root / 'own.db'}")


def log_of(invented: Any) -> Log:
    invented.folder.mkdir(parents=True, exist_ok=True)
    return Log(invented.folder, invented.space, Lines("text", "invented"))


def runs(uri: str) -> dict[str, Any]:
    """Every run there is; a second one of a name would fail here."""
    client = mlflow.MlflowClient(uri)
    found = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])
    assert len({run.info.run_name for run in found}) == len(found)
    return {run.info.run_name: run for run in found}


NAMES = {f"ratio={ratio} seed {seed}" for ratio in (0.1, 0.2) for seed in (0, 1)}


def test_a_parent_and_a_run_a_trial_and_seed(tracked: Any) -> None:
    record, log = tracked.one_of_each(), log_of(tracked)
    for trial in record.trials.values():
        log.add(trial)
    assert log.close(record) is None
    found = runs(tracked.space.base.runtime.tracking_uri)
    assert set(found) == {"invented", *NAMES}
    parent = found.pop("invented")
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics == {
        "trials.finished": 1.0,
        "trials.stopped": 1.0,
        "trials.diverged": 0.0,
        "trials.failed": 0.0,
    }
    assert {run.data.tags["mlflow.parentRunId"] for run in found.values()} == {parent.info.run_id}
    finished, stopped = found["ratio=0.1 seed 1"], found["ratio=0.2 seed 1"]
    assert (finished.info.status, stopped.info.status) == ("FINISHED", "KILLED")
    assert finished.data.metrics["test.pgd"] == 71.0
    assert finished.data.metrics["full.test.pgd"] == 71.0
    assert finished.data.params["select.ratio"] == "0.1"
    tags = finished.data.tags
    assert (tags["seed"], tags["status"], tags["cause"]) == ("1", "finished", "")
    assert json.loads(tags["settings"]) == {"select.ratio": 0.1}
    assert tags["warnings"] == "few seeds"
    assert finished.data.metrics["validation.pgd"] == 62.0
    assert tags["trial"] == tracked.space.points[0].name and len(tags["digest.train"]) == 20
    client = mlflow.MlflowClient(tracked.space.base.runtime.tracking_uri)
    history = client.get_metric_history(finished.info.run_id, "val_pgd")
    assert [(m.step, m.value) for m in history] == [(40, 51.0), (80, 52.0)]
    assert stopped.data.metrics == {"val_pgd.mean": 33.0}
    assert stopped.data.tags["step"] == "40"


def test_a_trial_is_there_from_its_start(tracked: Any) -> None:
    record, first = tracked.record(), tracked.space.points[0]
    record.start(first.name)
    log = log_of(tracked)
    log.add(record.trials[first.name])
    assert log.close(None) is None
    uri = tracked.space.base.runtime.tracking_uri
    found = runs(uri)
    assert set(found) == {"invented", *(name for name in NAMES if "0.1" in name)}
    started = found["ratio=0.1 seed 0"]
    assert (started.info.status, started.data.tags["status"]) == ("RUNNING", "running")
    assert started.data.params["select.ratio"] == "0.1" and started.data.metrics == {}
    tracked.publish(first, 70.0)
    again = log_of(tracked)  # the first command was killed
    again.add(record.finish(first.name))
    assert again.close(record) is None
    ended = runs(uri)["ratio=0.1 seed 0"]
    assert ended.info.run_id == started.info.run_id
    assert (ended.info.status, ended.data.tags["status"]) == ("FINISHED", "finished")


def test_a_run_may_have_any_title(tracked: Any) -> None:
    """One with quotes, which no filter of MLflow's may hold, or longer than its stores hold."""
    uri = tracked.space.base.runtime.tracking_uri
    space = {"select.ratio": [0.1, 0.2], "evaluate.attacks": [["clean", "pgd"]]}
    quoted = tracked.again(f"runtime.tracking_uri={uri}", space=space)
    record = quoted.record()
    titles = {
        f"attacks=['clean', 'pgd'] ratio={ratio} seed {seed}"
        for ratio in (0.1, 0.2)
        for seed in (0, 1)
    }
    for point in quoted.space.points:
        record.start(point.name)
    log = log_of(quoted)
    for point in quoted.space.points:
        log.add(record.trials[point.name])
    assert log.close(None) is None
    assert set(runs(uri)) == {"invented", *titles}
    tracker = SweepTracker(uri, quoted.store, "other")
    assert len(tracker.open("x" * 300, "parent", "own").info.run_name) == 250


def test_a_trial_without_results_keeps_its_metrics_by_step(tracked: Any) -> None:
    """Of a training that was published from the store, of one that paused from the trial's folder."""
    record, point = tracked.record(), tracked.space.points[0]
    plan = build_plan(point.config)
    published, paused = (plan.jobs["random", seed, "train"] for seed in (0, 1))
    history = [{"step": 40, "seconds": 1.0, "val_pgd": 41.0, "loss": 2.0}]
    longer = [*history, {"step": 80, "seconds": 2.0, "val_pgd": 43.0, "loss": 1.0}]
    tracked.store.publish(published, {"history": longer, "seconds": 2.0})
    histories = {published.digest: history, paused.digest: history}
    write_atomic(tracked.folder / point.name / HISTORIES, json.dumps(histories))
    log = log_of(tracked)
    log.add(record.fail(point.name, "diverged", "train random seed 1: the loss is NaN"))
    assert log.close(record) is None
    uri = tracked.space.base.runtime.tracking_uri
    client = mlflow.MlflowClient(uri)
    for seed, expected in enumerate((longer, history)):
        run = runs(uri)[f"ratio=0.1 seed {seed}"]
        assert run.info.status == "FAILED"
        for key in ("val_pgd", "loss"):
            logged = client.get_metric_history(run.info.run_id, key)
            assert [(m.step, m.value) for m in logged] == [(e["step"], e[key]) for e in expected]


def test_nothing_is_logged_twice(tracked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    record, log = tracked.one_of_each(), log_of(tracked)
    for trial in record.trials.values():
        log.add(trial)
    assert log.close(record) is None

    def fail(*args: Any, **options: Any) -> None:
        raise AssertionError("it was logged already")

    for method in ("create_run", "log_batch", "log_artifact"):
        monkeypatch.setattr(mlflow.MlflowClient, method, fail)
    again = log_of(tracked)
    for trial in record.trials.values():
        again.add(trial)
    assert again.close(record, 0.0) is None


def test_a_failed_trial_that_finishes_later_has_one_run(tracked: Any) -> None:
    record, first = tracked.record(), tracked.space.points[0]
    log = log_of(tracked)
    log.add(record.fail(first.name, "failed", "its disk was full"))
    assert log.close(record) is None
    uri = tracked.space.base.runtime.tracking_uri
    failed = runs(uri)["ratio=0.1 seed 0"]
    assert (failed.info.status, failed.data.tags["cause"]) == ("FAILED", "its disk was full")
    tracked.publish(first, 70.0)
    again = log_of(tracked)
    again.add(record.finish(first.name))
    assert again.close(record) is None
    found = runs(uri)
    assert found["ratio=0.1 seed 0"].info.status == "FINISHED"
    assert found["ratio=0.1 seed 0"].data.tags["status"] == "finished"
    assert found["invented"].data.metrics["trials.failed"] == 0.0


def test_an_end_that_was_logged_before_follows_a_start(tracked: Any) -> None:
    """A trial that fails again of the same, before its start was logged."""
    record, first = tracked.record(), tracked.space.points[0]
    log = log_of(tracked)
    log.add(record.fail(first.name, "failed", "its disk was full"))
    assert log.close(record) is None
    again = log_of(tracked)
    record.start(first.name)
    again.add(record.trials[first.name])
    again.add(record.fail(first.name, "failed", "its disk was full"))
    assert again.close(record) is None
    run = runs(tracked.space.base.runtime.tracking_uri)["ratio=0.1 seed 0"]
    assert (run.info.status, run.data.tags["status"]) == ("FAILED", "failed")


def test_a_trial_that_cannot_be_logged_holds_up_no_other(
    tracked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "RETRY_SECONDS", 0.01)
    record, log = tracked.one_of_each(), log_of(tracked)
    first, second = record.trials.values()
    results = tracked.folder / first["name"] / "results.json"
    content = results.read_text()
    results.unlink()  # somebody has cleaned up
    log.add(first)
    log.add(second)
    assert "results.json" in str(log.close(record, 1.0))
    uri = tracked.space.base.runtime.tracking_uri
    assert runs(uri)["ratio=0.2 seed 1"].info.status == "KILLED"
    assert runs(uri)["invented"].info.status == "FINISHED"
    results.write_text(content)
    again = log_of(tracked)
    again.add(first)
    assert again.close(record) is None
    assert runs(uri)["ratio=0.1 seed 1"].info.status == "FINISHED"


def test_a_store_that_fails_for_a_while_gets_everything(
    tracked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "RETRY_SECONDS", 0.01)
    original, calls = mlflow.MlflowClient.log_batch, 0

    def sometimes(self: Any, *args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls < 12 and calls % 3:
            raise ConnectionError("the server is away")
        return original(self, *args, **options)

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", sometimes)
    record, log = tracked.one_of_each(), log_of(tracked)
    record.trials = {k: v for k, v in record.trials.items() if v["status"] == "stopped"}
    for trial in record.trials.values():
        log.add(trial)
    assert log.close(record) is None
    assert calls >= 12, "it has failed eight times, after different calls"
    found = runs(tracked.space.base.runtime.tracking_uri)
    assert set(found) == {"invented", "ratio=0.2 seed 0", "ratio=0.2 seed 1"}
    expected = flatten(tracked.space.points[1].config.model_dump(mode="json"))
    for seed in (0, 1):
        run = found[f"ratio=0.2 seed {seed}"]
        assert (run.info.status, run.data.tags["status"]) == ("KILLED", "stopped")
        assert run.data.metrics == {"val_pgd.mean": 33.0}
        assert run.data.params == {
            **{key: str(value) for key, value in expected.items()},
            "row": "random",
            "seed": str(seed),
        }


def test_what_never_works_is_said_and_tried_by_the_next_command(
    tracked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "RETRY_SECONDS", 0.01)
    original = mlflow.MlflowClient.create_run

    def fail(*args: Any, **options: Any) -> None:
        raise ConnectionError("the server is away")

    monkeypatch.setattr(mlflow.MlflowClient, "create_run", fail)
    record, log = tracked.one_of_each(), log_of(tracked)
    for trial in record.trials.values():
        log.add(trial)
    assert log.close(record, 0.1) == "the server is away"
    monkeypatch.setattr(mlflow.MlflowClient, "create_run", original)
    again = log_of(tracked)
    for trial in record.trials.values():
        again.add(trial)
    assert again.close(record) is None
    assert set(runs(tracked.space.base.runtime.tracking_uri)) == {"invented", *NAMES}


def test_a_configured_server_that_does_not_answer_is_refused_first(invented: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    log = log_of(invented.again(f"runtime.tracking_uri={uri}"))
    with pytest.raises(UserError, match=rf"runtime\.tracking_uri={uri}"):
        log.check()
    log.close(None, 0.0)


@pytest.mark.slow
def test_the_sweeps_own_server_writes_to_the_store(invented: Any) -> None:
    record, log = invented.one_of_each(), log_of(invented)
    (invented.folder / PAGE).write_text("<!doctype html>")
    for trial in record.trials.values():
        log.add(trial)
    assert log.close(record) is None
    assert log._server is not None
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", int(log._server.uri.rpartition(":")[2])), 5)
    found = runs(f"sqlite:///{invented.store.root / DATABASE}")
    assert set(found) == {"invented", *NAMES}
    client = mlflow.MlflowClient(f"sqlite:///{invented.store.root / DATABASE}")
    run = found["ratio=0.1 seed 0"]
    assert {a.path for a in client.list_artifacts(run.info.run_id)} == {
        "results.json",
        "report.html",
    }
    assert run.info.artifact_uri.startswith((invented.store.root / ARTIFACTS).as_uri())
    parent = found["invented"].info.run_id
    assert {a.path for a in client.list_artifacts(parent)} == {"sweep.json", "compare.html"}
    state = json.loads((invented.folder / "mlflow.json").read_text())
    assert state["finished"] and state["uri"] is None


@pytest.mark.slow
def test_a_server_that_is_away_for_a_while_gets_everything(
    invented: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "RETRY_SECONDS", 0.5)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    uri = f"http://127.0.0.1:{port}"
    places = str(invented.root / "away.db"), str(invented.root / "artifacts")
    quiet = subprocess.DEVNULL

    def start() -> subprocess.Popen[bytes]:
        return serve(port, *places, stdout=quiet, stderr=quiet, start_new_session=True)

    running = start()
    try:
        answer(uri)
        away = invented.again(f"runtime.tracking_uri={uri}")
        record, log = away.one_of_each(), log_of(away)
        log.check()
        first, second = record.trials.values()
        log.add(first)
        os.killpg(running.pid, signal.SIGKILL)  # in the middle of the first trial
        running.wait()
        log.add(second)
        time.sleep(5)
        running = start()
        assert log.close(record) is None
        found = runs(uri)
        assert set(found) == {"invented", *NAMES}
        history = mlflow.MlflowClient(uri).get_metric_history(
            found["ratio=0.1 seed 0"].info.run_id, "val_pgd"
        )
        assert [(m.step, m.value) for m in history] == [(40, 51.0), (80, 52.0)]
        assert found["ratio=0.1 seed 0"].data.metrics["test.pgd"] == 69.0
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()


def answer(uri: str, seconds: float = 400.0) -> None:
    """Wait until a server answers."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            mlflow.MlflowClient(uri).search_experiments()
            return
        except Exception:
            time.sleep(0.5)
    raise AssertionError(f"{uri} never answered")


@pytest.mark.slow
def test_the_server_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    server = Server(tmp_path / "mlflow.db", tmp_path / "artifacts", tmp_path / "mlflow.log")
    server.wait()
    keeper = server._keeper
    assert keeper.stdin is not None
    keeper.stdin.close()  # as the system does for a killed process
    keeper.wait(60)
    end = time.monotonic() + 10
    with pytest.raises(ProcessLookupError):
        while (
            time.monotonic() < end
        ):  # the last of its group die with it, and are reaped a moment later
            os.killpg(keeper.pid, 0)
            time.sleep(0.1)
