"""What every running job has done so far, for the command that waits for it, and for Prometheus.

The board's metrics are Ray's: every node serves them on its metrics port, with the prefix `ray_`.
"""

from __future__ import annotations

import time
from typing import Any

import ray
from ray.util.metrics import Counter, Gauge, Histogram
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

BOARD = "ssat-progress"
STEP_SECONDS = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]
"""Bounds of the histogram of step times."""


class Metrics:
    """What Prometheus is told; `artefact` is a job's label, `stage` its first word (docs/operations.md).

    The label is not called `job`, which is Prometheus' own.
    """

    def __init__(self) -> None:
        tags = ("stage", "artefact", "unit")
        self._done = Gauge("ssat_stage_done", "units done of a job", tag_keys=tags)
        self._total = Gauge("ssat_stage_total", "units of a job", tag_keys=tags)
        self._images = Counter(
            "ssat_images_total", "images that a stage worked through", tag_keys=("stage",)
        )
        self._step = Histogram(
            "ssat_step_seconds",
            "wall seconds of a training step",
            boundaries=STEP_SECONDS,
            tag_keys=("stage",),
        )
        self._accuracy = Gauge(
            "ssat_accuracy",
            "share of test images right under an attack",
            tag_keys=("artefact", "attack"),
        )
        self._steps: dict[str, tuple[float, float]] = {}

    def progress(self, job: str, done: float, total: float, unit: str, added: float) -> None:
        """Of a job, of which `added` units were done since the last time."""
        stage = job.split()[0]
        tags = {"stage": stage, "artefact": job, "unit": unit}
        self._done.set(done, tags)
        self._total.set(total, tags)
        if unit == "images" and added > 0:
            self._images.inc(added, {"stage": stage})
        if unit == "steps":
            before, self._steps[job] = self._steps.get(job), (done, time.monotonic())
            if before is not None and done > before[0]:
                each = (self._steps[job][1] - before[1]) / (done - before[0])
                self._step.observe(max(each, 1e-9), {"stage": stage})

    def accuracy(self, job: str, attack: str, value: float) -> None:
        self._accuracy.set(value, {"artefact": job, "attack": attack})


@ray.remote(num_cpus=0)
class ProgressBoard:
    """What every running job has done so far; workers post, the driver polls."""

    def __init__(self) -> None:
        self._jobs: dict[str, dict[str, Any]] = {}
        self._histories: dict[str, list[dict[str, float]]] = {}
        self._decisions: dict[tuple[str, int], bool] = {}
        self._metrics = Metrics()

    def post(self, job: str, done: float, total: float, unit: str, note: str = "") -> None:
        """A job has done so much in all."""
        entry = self._jobs.setdefault(job, {"since": time.time(), "first": done})
        added = done - entry.get("done", done)
        entry.update(done=done, total=total, unit=unit, note=note)
        self._metrics.progress(job, done, total, unit, added)

    def add(self, job: str, amount: float, total: float, unit: str) -> None:
        """A job has done so much more."""
        entry = self._jobs.setdefault(
            job, {"since": time.time(), "first": 0.0, "done": 0.0, "note": ""}
        )
        entry.update(done=entry["done"] + amount, total=total, unit=unit)
        self._metrics.progress(job, entry["done"], total, unit, amount)

    def accuracy(self, job: str, attack: str, value: float) -> None:
        """A job has measured an accuracy."""
        self._metrics.accuracy(job, attack, value)

    def paused(self, digest: str, history: list[dict[str, float]]) -> None:
        """A training has paused after the last of these evaluations."""
        self._histories[digest] = history

    def histories(self, digests: list[str]) -> dict[str, list[dict[str, float]]]:
        """Evaluations of those of these trainings that have paused."""
        return {digest: self._histories[digest] for digest in digests if digest in self._histories}

    def decide(self, key: str, rung: int, go_on: bool) -> None:
        """Whether the trainings of `key` go beyond a rung."""
        self._decisions[key, rung] = go_on

    def decision(self, key: str, rung: int) -> bool | None:
        """What was decided; None: nothing yet."""
        return self._decisions.get((key, rung))

    def read(self) -> dict[str, dict[str, Any]]:
        return self._jobs


def start_board() -> Any:
    """The session's board, started by the driver on its own node, with which it lives and dies."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"name": BOARD, "get_if_exists": True, "scheduling_strategy": here}
    return ProgressBoard.options(**options).remote()  # type: ignore[attr-defined]


def read_board(board: Any) -> dict[str, dict[str, Any]]:
    """What every job has posted so far, as seen by the driver."""
    posted: dict[str, dict[str, Any]] = ray.get(board.read.remote(), timeout=5)
    return posted


def board() -> Any:
    """The session's board as seen by a worker."""
    return ray.get_actor(BOARD)
