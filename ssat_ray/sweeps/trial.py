"""A batch of trials: pipeline runs in an actor, and the function that Ray Tune calls, which looks after it.

The function reserves nothing but a thousandth of its node's own resource: Ray Tune puts all that a trial of its own starts into
a placement group, so the pipeline runs outside of it, and its stages ask the cluster for what they need.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.core.generated import gcs_pb2
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ssat_ray.errors import RunFailed
from ssat_ray.places import Place
from ssat_ray.store import Store
from ssat_ray.sweeps.space import Point

POLL_SECONDS = 1.0
SHARE = 0.001
"""Of the resource `node:<address>`, of which every node has 1: as many trials can be on one."""
STEP, VALUE = "step", "val_pgd"
"""What a trial reports at a rung: its steps, and the mean validation robust accuracy of its seeds in percent."""
NAME, STATUS, CAUSE = "name", "status", "cause"
"""Which trial a report is about, and what it says at the trial's end."""
History = list[dict[str, float]]


@dataclass(frozen=True)
class Order:
    """What a batch has to do.

    Args:
        points: the configurations of its trials.
        folder: of the sweep; a trial's is in it, under the trial's name.
        cwd: that relative paths of the configurations are about.
        rungs: steps at which trainings of the swept row pause, in a batch of one trial; none: they do not.
        trained: of these trainings, digest -> the artefact's folder.
    """

    points: tuple[Point, ...]
    folder: Path
    cwd: Path
    rungs: tuple[int, ...] = ()
    trained: dict[str, Place] | None = None


@ray.remote(num_cpus=0)
class Runner:
    """Runs the pipelines of a batch in the main thread of a process, whose output goes to the runs' logs."""

    def run(self, order: Order) -> dict[str, dict[str, Any]]:
        """Trial -> how it ended."""
        from ssat_ray.sweeps.runner import run_trials  # torch: not in the process that only waits

        return run_trials(order)


def trainable(order_of: Callable[[dict[str, Any]], Order], board: Any) -> Any:
    """The function that Ray Tune calls for a batch, with what it reserves.

    Args:
        order_of: what Ray Tune has for the batch -> what to do.
        board: the session's progress board.
    """

    def trial(config: dict[str, Any]) -> None:
        order = order_of(config)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        runner = Runner.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
        outcomes = _watch(runner.run.remote(order), order, board)
        ray.kill(runner)
        for name, outcome in outcomes.items():
            tune.report({NAME: name, **outcome})
        causes = [o[CAUSE] for o in outcomes.values() if o.get(CAUSE) is not None]
        if causes:  # so that a search knows that it failed
            raise RunFailed(causes[0])

    return tune.with_resources(trial, {"cpu": 0, _node_resource(): SHARE})


def _watch(done: Any, order: Order, board: Any) -> dict[str, dict[str, Any]]:
    """Wait for the runner, and report every rung that all seeds of a trial have reached meanwhile.

    Returns:
        Trial -> how it ended.
    """
    left = list(order.rungs)
    while not ray.wait([done], timeout=POLL_SECONDS)[0]:
        left = _report_rungs(order, board, left)
        with contextlib.suppress(Exception):  # Ray's own tables: the batch is none the worse for it
            free_abandoned()
    _report_rungs(order, board, left)  # it may have found all its trainings published
    try:
        outcomes: dict[str, dict[str, Any]] = ray.get(done)
    except ray.exceptions.RayError as error:  # the process is gone, for lack of memory for example
        reason = " ".join(str(error).split())[:300]
        lost = {STATUS: "failed", CAUSE: f"the trial's process died: {reason}"}
        return {point.name: lost for point in order.points}
    return outcomes


def free_abandoned() -> None:
    """Remove the placement groups of this job whose maker has died: other batches would wait for their CPUs for ever.

    Ray keeps a group as long as the job lives, and has no public word for who made it (2.60).
    """
    job = ray.get_runtime_context().get_job_id()
    table = ray._private.state.state._connect_and_get_accessor().get_placement_group_table()
    for group in map(gcs_pb2.PlacementGroupTableData.FromString, table):
        maker = group.creator_actor_id
        nobody = maker in (b"", ray.ActorID.nil().binary())
        if nobody or group.creator_job_id.hex() != job or group.state == group.REMOVED:
            continue
        if ray._private.state.actors(maker.hex()).get("State") == "DEAD":
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))


def _report_rungs(order: Order, board: Any, left: list[int]) -> list[int]:
    """Report the rungs of `left` that all seeds have reached; returns those that are left."""
    if left:
        histories, finished = _progress(order, board)
        name = order.points[0].name
        while left and (value := rung_value(histories, finished, left[0])) is not None:
            rung, left = left[0], left[1:]
            tune.report({NAME: name, STEP: rung, VALUE: value})
            if ray.get(board.decision.remote(name, rung)) is False:  # it may have reached more
                return []
    return left


def _progress(order: Order, board: Any) -> tuple[list[History], list[bool]]:
    """Evaluations of every seed's training so far, and whether it has ended."""
    trained = order.trained or {}
    paused = ray.get(board.histories.remote(list(trained)))
    records = {digest: Store.read_record(folder) for digest, folder in trained.items()}
    histories = [
        paused.get(digest, []) if record is None else record["history"]
        for digest, record in records.items()
    ]
    return histories, [record is not None for record in records.values()]


def rung_value(histories: list[History], finished: list[bool], rung: int) -> float | None:
    """Mean over seeds of the validation robust accuracy (percent) at the first evaluation from `rung` steps on.

    A training that ended before counts with its last evaluation. None if one is not there yet, or if all have ended
    before: nothing was left to stop there.
    """
    reached = [[entry for entry in history if entry[STEP] >= rung] for history in histories]
    if all(finished) and not any(reached):
        return None
    values = []
    for history, found, ended in zip(histories, reached, finished, strict=True):
        if not found and not ended:
            return None
        values.append((found[0] if found else history[-1])[VALUE])
    return sum(values) / len(values)


def rungs_of(grace: int, reduction: int, longest: int) -> tuple[int, ...]:
    """grace, grace * reduction, … below `longest` steps."""
    found = []
    while grace < longest:
        found.append(grace)
        grace *= reduction
    return tuple(found)


def _node_resource() -> str:
    """The resource that this node alone has."""
    here = ray.get_runtime_context().get_node_id()
    node = next(node for node in ray.nodes() if node["NodeID"] == here)
    names = [name for name in node["Resources"] if name.startswith("node:")]
    return next(name for name in names if not name.startswith("node:__"))
