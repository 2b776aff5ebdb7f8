"""MLflow: one parent run a comparison or sweep, children below it, through one client with explicit ids."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import sqlite3
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssat_ray.config import Config
from ssat_ray.errors import UserError
from ssat_ray.leases import file_lock
from ssat_ray.loading import flatten
from ssat_ray.models.files import DESCRIPTION, WEIGHTS
from ssat_ray.places import Place, Remote, cache_of, write_atomic
from ssat_ray.provenance import git_commit, installed, library_versions
from ssat_ray.report.words import machine_name
from ssat_ray.store import Job, Store

if TYPE_CHECKING:
    from ssat_ray.plan import Plan

EXPERIMENT = "ssat_ray"
KIND = {"mlflow.experimentKind": "custom_model_development"}
"""So that MLflow's pages show training runs first, not those of language models."""
STATE = "mlflow.json"
DATABASE, ARTIFACTS = "mlflow.db", "mlflow-artifacts"
SETTINGS, WARNINGS = "settings", "warnings"
"""Tags: of a trial, the swept keys with their values as JSON; what to know of results before reading them, a line each."""
KEY = "ssat_ray.key"
"""Tag by which a later command finds the runs that a killed one created."""
MOST_NAME = 250
"""Characters of a run's name that every store of MLflow holds."""
BATCH = 1000
CHECK_SECONDS = 30.0
SQLITE = "sqlite:///"
QUICK = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""Settings of the check only; MLflow's own retries take minutes."""
MODEL_NEEDS = ("ssat_ray", "torch", "safetensors", "numpy")


def is_due(plan: Plan, folder: Place) -> bool:
    """Whether the plan's report is still to be logged."""
    return not read_state(plan.last.digest, folder).get("finished")


def check(uri: str | None, store: Store, seconds: float = CHECK_SECONDS) -> None:
    """Make sure that the tracking store answers. SQLite takes milliseconds, all else `seconds` at most.

    Raises:
        UserError: it does not; names `runtime.tracking_uri`.
    """
    found = tracking_uri(uri, store)
    try:
        if found.startswith(SQLITE):
            _check_sqlite(Path(found.removeprefix(SQLITE).partition("?")[0]), seconds)
        else:
            _ask(found, seconds)
    except Exception as error:  # whatever the store of this scheme raises
        raise UserError(
            f"runtime.tracking_uri={'null' if uri is None else uri}: MLflow cannot log to {found} "
            f"({reason(error)}); give another URI, or null for a file in the store."
        ) from error


def tracking_uri(uri: str | None, store: Store) -> str:
    """The configured URI, or that of the store's own SQLite file.

    Raises:
        UserError: the store is no folder that SQLite can write.
    """
    if uri is None and isinstance(store.root, Remote):
        raise UserError(
            f"runtime.tracking_uri=null is a file in the store, and {store.root} can hold no database; give "
            "the URI of an MLflow server."
        )
    return uri or f"{SQLITE}{store.root / DATABASE}"


def reason(error: BaseException) -> str:
    """An exception in one line."""
    return " ".join(str(error).split())[:400].rstrip(".") or type(error).__name__


def _check_sqlite(path: Path, seconds: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)  # MLflow does so too
    if path.exists():
        with contextlib.closing(sqlite3.connect(path, timeout=seconds)) as database:
            database.execute("PRAGMA schema_version")
    for place in (path.parent, path):
        if place.exists() and not os.access(place, os.W_OK):
            raise PermissionError(f"{place} cannot be written")


def _ask(uri: str, seconds: float) -> None:
    """One request, in a thread that is left behind if it does not end."""
    import mlflow

    answer: list[Exception | None] = []

    def ask() -> None:
        try:
            mlflow.MlflowClient(uri).get_experiment_by_name(EXPERIMENT)
        except Exception as error:
            answer.append(error)
        else:
            answer.append(None)

    with _environment(QUICK):
        thread = threading.Thread(target=ask, name="mlflow-check", daemon=True)
        thread.start()
        thread.join(seconds)
    if not answer:
        raise TimeoutError(f"no answer within {seconds:.0f} seconds")
    if answer[0] is not None:
        raise answer[0]


@contextlib.contextmanager
def _environment(wanted: dict[str, str]) -> Iterator[None]:
    """Environment variables for a `with` block; those that the user has set stay."""
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def reading_client(uri: str) -> Any:
    """An MLflow client of a tracking store that exists; it makes neither a database nor an experiment.

    Raises:
        UserError: the store is not there, or does not answer.
    """
    try:
        if uri.startswith(SQLITE):
            path = Path(uri.removeprefix(SQLITE).partition("?")[0])
            if not path.is_file():
                raise FileNotFoundError(f"{path} does not exist")
        else:
            _ask(uri, CHECK_SECONDS)
    except Exception as error:  # whatever the store of this scheme raises
        raise UserError(f"{uri}: MLflow cannot be read ({reason(error)}).") from error
    import mlflow

    _quiet()
    return mlflow.MlflowClient(uri)


def _quiet() -> None:
    for name in ("mlflow", "alembic", "sqlalchemy"):
        logging.getLogger(name).setLevel(logging.ERROR)


def log_run(
    config: Config, plan: Plan, store: Store, results: dict[str, Any], folder: Place
) -> str:
    """Log a finished comparison once; returns the parent's run id.

    `mlflow.json` in the run folder holds a random key from before the first run is created, and every
    run carries it as a tag. So a command that was killed at any moment is continued by the next one,
    which finds the runs by their key and finishes them; a finished comparison is not logged again.

    Raises:
        UserError: the tracking store does not answer. MLflow's own exceptions: it fails later.
    """
    state_path = folder / STATE
    state = read_state(plan.last.digest, folder)
    if state.get("finished"):
        return str(state["parent"])
    check(config.runtime.tracking_uri, store)
    if "key" not in state:
        state = {"report": plan.last.digest, "key": uuid.uuid4().hex, "children": {}}
        write_atomic(state_path, json.dumps(state))
    tracker = Tracker(config.runtime.tracking_uri, store, state["key"])
    parent = tracker.open(folder.name)
    state["parent"] = parent.info.run_id
    write_atomic(state_path, json.dumps(state))
    tracker.describe(parent, flatten(config.model_dump(mode="json")), _report_tags(plan))
    for row in results["rows"]:
        for index, seed in enumerate(row["seeds"]):
            name = f"{row['row']} seed {seed}"
            child = tracker.open(name, state["parent"])
            state["children"][name] = child.info.run_id
            write_atomic(state_path, json.dumps(state))
            if child.info.status != "FINISHED":
                tracker.fill(child, config, plan, row, index)
    tracker.describe(parent, {}, warning_tags(results))
    tracker.finish_parent(state["parent"], results, folder)
    write_atomic(state_path, json.dumps({**state, "finished": True}))
    return str(state["parent"])


class Tracker:
    """One MLflow client with explicit ids: no active run, no tracking URI of the whole process.

    Everything it does may be done again, to go on where a killed process stopped.

    Args:
        uri: of the tracking store; None: the store's own file.
        key: by which this comparison's or sweep's runs are found again.
        local: whether artifacts of a new experiment go to the store, as they do without a URI.
    """

    def __init__(self, uri: str | None, store: Store, key: str, local: bool = False) -> None:
        import mlflow

        _quiet()
        self.store, self.key = store, key
        root = store.root if isinstance(store.root, Path) else cache_of(store.root)
        location = (root / ARTIFACTS).as_uri() if local or uri is None else None
        with file_lock(root / ".mlflow.lock"):  # two processes must not create one database
            self.client = mlflow.MlflowClient(tracking_uri(uri, store))
            found = self.client.get_experiment_by_name(EXPERIMENT)
            self.experiment = (
                found.experiment_id
                if found
                else self.client.create_experiment(EXPERIMENT, location, KIND)
            )

    def open(self, name: str, parent: str | None = None, identity: str | None = None) -> Any:
        """The run of this identity under our key: the one a killed process left, or a new one.

        Args:
            name: for people.
            identity: among the runs of the parent, without quotes; the name unless given.
        """
        key = f"{self.key} {(identity or name) if parent else 'parent'}"
        found = self.client.search_runs([self.experiment], f"tags.`{KEY}` = '{key}'", max_results=1)
        if found:
            return found[0]
        tags = {
            "mlflow.runName": name[:MOST_NAME],
            "mlflow.source.git.commit": git_commit() or "unknown",
            KEY: key,
        }
        if parent:
            tags["mlflow.parentRunId"] = parent
        return self.client.create_run(self.experiment, tags=tags)

    def describe(self, run: Any, params: dict[str, Any], tags: dict[str, Any]) -> None:
        """Log what is not there yet: MLflow lets nobody change a parameter."""
        from mlflow.entities import Param, RunTag

        entries = [Param(k, str(v)[:6000]) for k, v in params.items() if k not in run.data.params]
        for start in range(0, len(entries), 100):
            self.client.log_batch(run.info.run_id, params=entries[start : start + 100])
        self.client.log_batch(run.info.run_id, tags=[RunTag(k, str(v)) for k, v in tags.items()])

    def fill(self, run: Any, config: Config, plan: Plan, row: dict[str, Any], index: int) -> None:
        """One row and seed: parameters, digests, metrics by step, results and the model."""
        run_id, seed = run.info.run_id, row["seeds"][index]
        jobs = jobs_of(plan, row["row"], seed)
        params = {"row": row["row"], "seed": seed, "recipe": row["recipe"][index]}
        params |= flatten(config.model_dump(mode="json"))
        self.describe(run, params, {**version_tags(), **digest_tags(jobs)})
        model = self._model(run_id, params)
        self.measure(run_id, jobs["train"], row, index, model.model_id)
        if model.status != "READY":
            self._log_model(run_id, model, self.store.folder(jobs["train"]))
        self.client.set_terminated(run_id)

    def measure(
        self, run_id: str, train: Job, row: dict[str, Any], index: int, model: str | None = None
    ) -> None:
        """Metrics by step of one seed's training, and its results, which are of `model` if there is one."""
        from mlflow.entities import Metric, RunTag

        record = self.store.record(train)
        assert record is not None
        tags = {f"attack.{attack}": entry["name"] for attack, entry in row["accuracy"].items()}
        tags["machine"] = machine_name(record["made_by"]["machine"])
        self.client.log_batch(run_id, tags=[RunTag(k, str(v)) for k, v in tags.items()])
        final = final_metrics(row, index).items()
        metrics = [Metric(k, float(v), 0, 0, model) for k, v in final]
        self.log_metrics(run_id, history_metrics(record["history"]) + metrics)

    def log_metrics(self, run_id: str, metrics: list[Any]) -> None:
        """As many at a time as a server takes."""
        for start in range(0, len(metrics), BATCH):
            self.client.log_batch(run_id, metrics=metrics[start : start + BATCH])

    def _model(self, run_id: str, params: dict[str, Any]) -> Any:
        """The run's one logged model, with or without its files."""
        found = self.client.search_logged_models(
            [self.experiment], f"source_run_id = '{run_id}'", max_results=1
        )
        if found:
            return found[0]
        return self.client.create_logged_model(
            self.experiment,
            name="classifier",
            source_run_id=run_id,
            params={k: str(v)[:6000] for k, v in params.items()},
        )

    def _log_model(self, run_id: str, model: Any, checkpoint: Place) -> None:
        """Log the final classifier from code, with a signature and pinned requirements.

        `mlflow.pyfunc.log_model` would do this for the active run only, and anew each time.
        """
        import mlflow
        import numpy as np
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import Model, ModelSignature
        from mlflow.types import Schema, TensorSpec

        about = json.loads((checkpoint / DESCRIPTION).read_text())
        images = TensorSpec(np.dtype(np.float32), (-1, *about["image_shape"]))
        logits = TensorSpec(np.dtype(np.float32), (-1, about["num_classes"]))
        description = Model(
            artifact_path=model.artifact_location,
            model_uuid=model.model_id,
            model_id=model.model_id,
            run_id=run_id,
        )
        with tempfile.TemporaryDirectory() as scratch:
            files, folder = Path(scratch) / "checkpoint", Path(scratch) / "model"
            files.mkdir()
            for name in (WEIGHTS, DESCRIPTION):
                (files / name).write_bytes((checkpoint / name).read_bytes())
            mlflow.pyfunc.save_model(
                str(folder),
                python_model=str(Path(__file__).with_name("pyfunc_model.py")),
                artifacts={"checkpoint": str(files)},
                signature=ModelSignature(Schema([images]), Schema([logits])),
                input_example=np.zeros((1, *about["image_shape"]), np.float32),
                pip_requirements=[f"{k}=={v}" for k, v in installed(MODEL_NEEDS).items()],
                mlflow_model=description,
            )
            for compiled in folder.rglob("__pycache__"):
                shutil.rmtree(compiled)
            self.client.log_model_artifacts(model.model_id, str(folder))
        known = self.client.get_run(run_id).outputs
        if model.model_id not in [m.model_id for m in (known.model_outputs if known else [])]:
            self.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        self.client.finalize_logged_model(model.model_id, "READY")

    def finish_parent(self, run_id: str, results: dict[str, Any], folder: Place) -> None:
        from mlflow.entities import Metric

        metrics = {}
        for row in results["rows"]:
            for attack, entry in row["accuracy"].items():
                metrics[f"{row['row']}.{attack}"] = entry["mean"]
            metrics[f"{row['row']}.seconds"] = row["seconds"]["total"]
        self.client.log_batch(run_id, [Metric(k, float(v), 0, 0) for k, v in metrics.items()])
        for name in ("report.html", "results.json", "run.json"):
            self.client.log_text(run_id, (folder / name).read_text(), name)
        self.client.set_terminated(run_id)


def jobs_of(plan: Plan, row: str, seed: int) -> dict[str, Job]:
    """stage -> job of one row and seed."""
    return {stage: job for (r, s, stage), job in plan.jobs.items() if (r, s) == (row, seed)}


def digest_tags(jobs: dict[str, Job]) -> dict[str, str]:
    """Digests of a row's artefacts, as tags."""
    return {f"digest.{stage}".replace(":", "."): job.digest for stage, job in jobs.items()}


def history_metrics(history: list[dict[str, float]]) -> list[Any]:
    """The evaluations of a training, as metrics by step."""
    from mlflow.entities import Metric

    return [
        Metric(k, float(v), int(1000 * entry["seconds"]), int(entry["step"]))
        for entry in history
        for k, v in entry.items()
        if k not in ("step", "seconds")
    ]


def final_metrics(row: dict[str, Any], index: int) -> dict[str, float]:
    """What came out of one seed of a row of `results.json`."""
    seed = row["seeds"][index]
    final = {
        f"test.{attack}": entry["by_seed"][entry["seeds"].index(seed)]
        for attack, entry in row["accuracy"].items()
        if seed in entry["seeds"]
    }
    final |= {f"seconds.{stage}": value for stage, value in row["seconds"].items()}
    final |= {f"images.{kind}": number for kind, number in row["images"].items()}
    final |= {
        "steps": row["steps"]["total"][index],
        "hit_max_steps": row["steps"]["hit_max_steps"][index],
        "memory.peak": row["peak_memory_bytes"]["max"],
    }
    if row["validation"]:
        final["validation.pgd"] = row["validation"][index]
    size = row["world_size"][index]
    return final if size is None else {**final, "world_size": size}


def warning_tags(results: dict[str, Any]) -> dict[str, str]:
    """What to know of the results before reading them, a line each."""
    return {WARNINGS: "\n".join(results["warnings"])[:5000]} if results["warnings"] else {}


def read_state(report: str, folder: Place) -> dict[str, Any]:
    """What a run's `mlflow.json` says of the report of this digest; empty if it is of another one."""
    path = folder / STATE
    state: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return state if state.get("report") == report else {}


def _report_tags(plan: Plan) -> dict[str, Any]:
    return {"digest": plan.last.digest, **version_tags()}


def version_tags() -> dict[str, str]:
    """Versions of the libraries, as tags."""
    return {f"version.{name}": found for name, found in library_versions().items()}
