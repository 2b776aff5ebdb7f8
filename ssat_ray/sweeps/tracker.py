"""What a sweep logs to MLflow beyond a comparison: one run a trial and seed, and how trials ended."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from mlflow.entities import Metric

from ssat_ray.config import Config
from ssat_ray.loading import flatten
from ssat_ray.plan import Plan
from ssat_ray.store import Job
from ssat_ray.tracking import (
    Tracker,
    digest_tags,
    final_metrics,
    history_metrics,
    jobs_of,
    version_tags,
)


class SweepTracker(Tracker):
    """A tracker of which everything, again, may be done again."""

    def start_trial(
        self, run: Any, config: Config, plan: Plan, row: str, seed: int, tags: dict[str, Any]
    ) -> None:
        """One trial of a sweep and seed: parameters, digests and tags, of a run that is under way."""
        params = {"row": row, "seed": seed, **flatten(config.model_dump(mode="json"))}
        digests = digest_tags(jobs_of(plan, row, seed))
        self.describe(run, params, {**version_tags(), **digests, **tags})
        self.client.update_run(run.info.run_id, "RUNNING")

    def end_trial(
        self, run_id: str, train: Job, unfinished: list[dict[str, float]], failed: bool
    ) -> None:
        """One that has no results: the evaluations that there are of its training.

        Args:
            unfinished: those of a training that has not been published.
        """
        record = self.store.record(train)
        history = unfinished if record is None else record.get("history", [])
        self.log_metrics(run_id, history_metrics(history))
        self.client.set_terminated(run_id, "FAILED" if failed else "KILLED")

    def fill_trial(
        self,
        run_id: str,
        plan: Plan,
        row: str,
        seed: int,
        results: dict[str, Any],
        files: tuple[Path, ...],
    ) -> None:
        """One that has finished: metrics by step, its and the baselines' results.

        The model is not logged: it is in the store, and a sweep has many.

        Args:
            files: artifacts.
        """
        jobs = jobs_of(plan, row, seed)
        for entry in results["rows"]:
            index = entry["seeds"].index(seed)
            if entry["row"] == row:
                self.measure(run_id, jobs["train"], entry, index)
            else:
                found = final_metrics(entry, index).items()
                metrics = [Metric(f"{entry['row']}.{k}", float(v), 0, 0) for k, v in found]
                self.client.log_batch(run_id, metrics=metrics)
        for path in files:
            self.client.log_artifact(run_id, str(path))
        self.client.set_terminated(run_id)

    def reports(self, run_id: str, reports: list[list[float]]) -> None:
        """What a trial reported at its rungs: [step, mean validation robust accuracy over its seeds]."""
        metrics = [Metric("val_pgd.mean", float(value), 0, int(step)) for step, value in reports]
        self.client.log_batch(run_id, metrics=metrics)

    def finish_sweep(self, run_id: str, counts: dict[str, int], files: tuple[Path, ...]) -> None:
        """The number of trials by status, and of the files those that there are."""
        metrics = [
            Metric(f"trials.{k}", float(v), int(1000 * time.time()), 0) for k, v in counts.items()
        ]
        self.client.log_batch(run_id, metrics=metrics)
        for path in files:
            if path.exists():  # no page without a finished trial
                self.client.log_artifact(run_id, str(path))
        self.client.set_terminated(run_id)
