"""MLflow: one parent run a comparison, one child a row and seed, through one client with explicit run ids."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

from ssat_ray.config import Config
from ssat_ray.models.files import DESCRIPTION, WEIGHTS
from ssat_ray.plan import Plan
from ssat_ray.runtime import git_commit
from ssat_ray.store import Store, write_atomic

EXPERIMENT = "ssat_ray"
STATE = "mlflow.json"
BATCH = 1000


def log_run(config: Config, plan: Plan, store: Store, results: dict[str, Any], folder: Path) -> str:
    """Log a finished comparison once; returns the parent's run id.

    `mlflow.json` in the run folder remembers what was logged, child by child, so a killed or repeated
    command neither loses nor doubles a run.
    """
    state_path = folder / STATE
    state = json.loads(state_path.read_text()) if state_path.exists() else {}
    if state.get("report") == plan.report.digest and state.get("finished"):
        return str(state["parent"])
    tracker = Tracker(config.runtime.tracking_uri, store)
    if state.get("report") != plan.report.digest:
        state = {
            "report": plan.report.digest,
            "parent": tracker.start(folder.name, None),
            "children": {},
        }
        tracker.describe(
            state["parent"],
            _flatten(config.model_dump(mode="json")),
            {"digest": plan.report.digest},
        )
        write_atomic(state_path, json.dumps(state))
    for row in results["rows"]:
        for index, seed in enumerate(row["seeds"]):
            key = f"{row['row']} seed {seed}"
            if key in state["children"]:
                continue
            state["children"][key] = tracker.child(config, plan, row, index, state["parent"])
            write_atomic(state_path, json.dumps(state))
    tracker.finish_parent(state["parent"], results, folder)
    write_atomic(state_path, json.dumps({**state, "finished": True}))
    return str(state["parent"])


class Tracker:
    """One MLflow client; no global active run, so nothing depends on which process logs."""

    def __init__(self, uri: str | None, store: Store) -> None:
        import mlflow

        for name in ("mlflow", "alembic", "sqlalchemy"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self.mlflow, self.store = mlflow, store
        self.uri = uri or f"sqlite:///{store.root / 'mlflow.db'}"
        mlflow.set_tracking_uri(self.uri)
        self.client = mlflow.MlflowClient(self.uri)
        found = self.client.get_experiment_by_name(EXPERIMENT)
        location = None if uri else (store.root / "mlflow-artifacts").as_uri()
        self.experiment = (
            found.experiment_id if found else self.client.create_experiment(EXPERIMENT, location)
        )

    def start(self, name: str, parent: str | None) -> str:
        tags = {"mlflow.runName": name, "mlflow.source.git.commit": git_commit() or "unknown"}
        if parent:
            tags["mlflow.parentRunId"] = parent
        run_id: str = self.client.create_run(self.experiment, tags=tags).info.run_id
        return run_id

    def describe(self, run_id: str, params: dict[str, Any], tags: dict[str, Any]) -> None:
        from mlflow.entities import Param, RunTag

        entries = [Param(k, str(v)[:6000]) for k, v in params.items()]
        for start in range(0, len(entries), 100):
            self.client.log_batch(run_id, params=entries[start : start + 100])
        self.client.log_batch(run_id, tags=[RunTag(k, str(v)) for k, v in tags.items()])

    def child(
        self, config: Config, plan: Plan, row: dict[str, Any], index: int, parent: str
    ) -> str:
        """One row and seed: parameters, digests, metrics by step, results and the model."""
        from mlflow.entities import Metric

        seed = row["seeds"][index]
        run_id = self.start(f"{row['row']} seed {seed}", parent)
        jobs = {
            stage: job for (r, s, stage), job in plan.jobs.items() if (r, s) == (row["row"], seed)
        }
        versions = {f"version.{name}": v for name, v in _versions().items()}
        digests = {f"digest.{stage}".replace(":", "."): job.digest for stage, job in jobs.items()}
        params = {"row": row["row"], "seed": seed, "recipe": row["recipe"][index]}
        self.describe(
            run_id, {**params, **_flatten(config.model_dump(mode="json"))}, {**versions, **digests}
        )
        record = self.store.record(jobs["train"])
        assert record is not None
        metrics = []
        for entry in record["history"]:
            when = int(1000 * entry["seconds"])
            metrics += [
                Metric(k, float(v), when, int(entry["step"]))
                for k, v in entry.items()
                if k not in ("step", "seconds")
            ]
        final = {
            f"test.{attack}": entry["by_seed"][entry["seeds"].index(seed)]
            for attack, entry in row["accuracy"].items()
            if seed in entry["seeds"]
        }
        final |= {f"seconds.{stage}": value for stage, value in row["seconds"].items()}
        final |= {"steps": row["steps"]["total"][index], "images.pool": row["images"]["pool"]}
        metrics += [Metric(k, float(v), 0, 0) for k, v in final.items()]
        for start in range(0, len(metrics), BATCH):
            self.client.log_batch(run_id, metrics=metrics[start : start + BATCH])
        self._log_model(run_id, self.store.folder(jobs["train"]))
        self.client.set_terminated(run_id)
        return run_id

    def _log_model(self, run_id: str, checkpoint: Path) -> None:
        """Log the final classifier from code, with a signature."""
        import numpy as np
        from mlflow.models import ModelSignature
        from mlflow.types import Schema, TensorSpec

        about = json.loads((checkpoint / DESCRIPTION).read_text())
        images = TensorSpec(np.dtype(np.float32), (-1, *about["image_shape"]))
        logits = TensorSpec(np.dtype(np.float32), (-1, about["num_classes"]))
        with tempfile.TemporaryDirectory() as scratch, self.mlflow.start_run(run_id=run_id):
            for name in (WEIGHTS, DESCRIPTION):
                shutil.copyfile(checkpoint / name, Path(scratch) / name)
            self.mlflow.pyfunc.log_model(
                name="classifier",
                python_model=str(Path(__file__).with_name("pyfunc_model.py")),
                artifacts={"checkpoint": scratch},
                signature=ModelSignature(Schema([images]), Schema([logits])),
                pip_requirements=["ssat_ray"],
            )

    def finish_parent(self, run_id: str, results: dict[str, Any], folder: Path) -> None:
        for row in results["rows"]:
            for attack, entry in row["accuracy"].items():
                self.client.log_metric(run_id, f"{row['row']}.{attack}", entry["mean"])
            self.client.log_metric(run_id, f"{row['row']}.seconds", row["seconds"]["total"])
        for name in ("report.html", "results.json", "run.json"):
            self.client.log_artifact(run_id, str(folder / name))
        self.client.set_terminated(run_id)


def _versions() -> dict[str, str]:
    from ssat_ray.stages.results import library_versions

    return library_versions()


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
