"""The trials of one command, as Ray Tune goes through their batches: what each is told, and what is noted of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial as TuneTrial

from ssat_ray.config import Config
from ssat_ray.errors import UserError
from ssat_ray.plan import Plan
from ssat_ray.store import Store
from ssat_ray.sweeps.log import Log
from ssat_ray.sweeps.record import FAILED, FINISHED, STOPPED, Record
from ssat_ray.sweeps.show import Lines
from ssat_ray.sweeps.space import Point
from ssat_ray.sweeps.trial import CAUSE, NAME, STATUS, STEP, VALUE, Order, rungs_of
from ssat_ray.training.schedule import rule_of

NUMBER = "batch"
"""What Ray Tune has for a batch: its number; a Bayesian search has the settings of its one trial instead."""


class Trials(tune.Callback):
    """The trials of one session: what each batch is told, and what is noted of its trials as Ray Tune goes on.

    A "trial" of Ray Tune's is a batch of ours.
    """

    def __init__(
        self,
        record: Record,
        plans: dict[str, Plan],
        board: Any,
        store: Store,
        lines: Lines,
        log: Log,
    ) -> None:
        self.record, self.plans, self.board, self.store = record, plans, board, store
        self.lines, self.log = lines, log
        self.due = record.due
        self.asha = record.space.sweep.asha
        self.rungs = () if self.asha is None else self._rungs()
        self.batches: list[list[Point]] = []
        self._under_way: dict[str, list[str]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Ray Tune saves its callbacks, with which nobody ever goes on: `sweep.json` is there for that."""
        return {}

    @property
    def base(self) -> Config:
        return self.record.space.base

    def _rungs(self) -> tuple[int, ...]:
        assert self.asha is not None
        lengths = []
        # Of ended trials too, so that a later command has the same rungs.
        for point in self.record.points.values():
            job = next(j for j in self.plans[point.name].unique if j.stage == "labelled")
            if (labelled := self.store.record(job)) is None:  # of an ended one that was removed
                continue
            rule = rule_of(point.config.train, labelled["rows"]["labelled"])
            lengths.append(rule.expected_steps)
        found = rungs_of(self.asha.grace, self.asha.reduction, max(lengths, default=0))
        if lengths and not found:
            raise UserError(
                f"stopping.asha.grace={self.asha.grace} stops nothing: no training has more than "
                f"{max(lengths)} steps."
            )
        return found

    def orders(self) -> Callable[[dict[str, Any]], Order]:
        """What Ray Tune has for a batch -> what it is told; it is called in the batch's process."""
        space, rungs, cwd = self.record.space, self.rungs, Path.cwd()
        parent = self.record.folder
        batches = [[point.settings for point in batch] for batch in self.batches]
        trained = {
            point.name: {
                job.digest: self.store.folder(job)
                for (row, _, stage), job in self.plans[point.name].jobs.items()
                if (row, stage) == (point.row, "train")
            }
            for point in self.due
            if rungs
        }

        def order_of(config: dict[str, Any]) -> Order:
            settings = batches[config[NUMBER]] if NUMBER in config else [config]
            points = tuple(space.point(one) for one in settings)
            return Order(points, parent, cwd, rungs, trained.get(points[0].name))

        return order_of

    # -- what Ray Tune says ---------------------------------------------------------------------------

    def _points(self, trial: TuneTrial) -> list[Point]:
        """Of a batch; none if the configuration refuses its point, as its process will find out too."""
        if NUMBER in trial.config:
            return self.batches[trial.config[NUMBER]]
        settings = {key: trial.config[key] for key in self.record.space.sweep.space}
        try:
            return [self.record.space.point(settings)]
        except UserError as error:
            self.lines.trial_ended(self.record.refuse(settings, str(error)), self.record)
            return []

    def on_trial_start(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        points = self._points(trial)
        for point in points:
            self.record.add(point)
            self.record.start(point.name)
            self.lines.trial_started(self.record.trials[point.name])
            self.log.add(self.record.trials[point.name])
        self._under_way[trial.trial_id] = [point.name for point in points]

    def on_trial_result(
        self,
        iteration: int,
        trials: list[TuneTrial],
        trial: TuneTrial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        name = result[NAME]
        if STATUS in result:
            self._under_way[trial.trial_id].remove(name)
            self._end(name, result)
        elif STEP in result:
            self.record.report(name, int(result[STEP]), float(result[VALUE]))

    def on_trial_error(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        if trial.trial_id not in self._under_way:  # its process never started
            self.on_trial_start(iteration, trials, trial)
        cause = f"Ray Tune lost the trial; its error: {_last(trial)}"
        for name in self._under_way[trial.trial_id]:  # an error of ours has a result
            self._end(name, {STATUS: FAILED, CAUSE: cause})

    def decide(self, trial: TuneTrial, rung: int, go_on: bool) -> None:
        """What a trial waits for at a rung."""
        (name,) = self._under_way[trial.trial_id]  # ASHA has batches of one
        ray.get(self.board.decide.remote(name, rung, go_on))

    def _end(self, name: str, outcome: dict[str, Any]) -> None:
        status = outcome[STATUS]
        if status == FINISHED:
            trial = self.record.finish(name)
        elif status == STOPPED:
            trial = self.record.stop(name)
        else:
            trial = self.record.fail(name, status, outcome[CAUSE])
        self.lines.trial_ended(trial, self.record)
        self.log.add(trial)


def _last(trial: TuneTrial) -> str:
    """The last line of a trial's error."""
    path = trial.error_file
    text = Path(path).read_text() if path and Path(path).exists() else ""
    return (text.strip().splitlines() or ["unknown"])[-1][:300]
