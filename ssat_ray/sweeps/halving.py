"""ASHA that ends trials gently, and goes on after a restart: it knows what trials of earlier commands have reported."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from ssat_ray.sweeps.trial import STEP, VALUE

Decide = Callable[[Any, int, bool], None]
"""Told a trial of Ray Tune, a rung, and whether the trial goes on from there."""


class Halving(ASHAScheduler):
    """Ray Tune's asynchronous successive halving over given rungs.

    Ray Tune ends a trial by killing its process. The CPUs that Ray Train has reserved for the trial's worker group can then stay
    reserved as long as the session lasts (seen with Ray 2.60), and the next trial waits for them for ever. So nothing is
    killed: the decision is told to `decide`, and the trial ends by itself.

    Args:
        rungs: steps, each `reduction` times the one before.
        reduction: a trial goes on from a rung if its value is among the best 1/reduction that reached it so far.
        known: name -> [step, value] of trials that are not run again.
    """

    def __init__(
        self,
        rungs: tuple[int, ...],
        reduction: int,
        known: dict[str, list[list[float]]],
        decide: Decide,
    ) -> None:
        super().__init__(
            time_attr=STEP,
            metric=VALUE,
            mode="max",
            grace_period=rungs[0],
            reduction_factor=reduction,
            max_t=rungs[-1] + 1,  # the last rung's place is computed by a quotient of logarithms
            stop_last_trials=False,
        )
        for name, reports in known.items():
            trial = SimpleNamespace(trial_id=name)
            self.on_trial_add(None, trial)
            for step, value in reports:
                super().on_trial_result(None, trial, {STEP: step, VALUE: value})
        self._decide = decide

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """As ASHA's, but `STOP` is only told to `decide`."""
        answer: str = super().on_trial_result(tune_controller, trial, result)
        if STEP in result:
            self._decide(trial, int(result[STEP]), answer != TrialScheduler.STOP)
        return str(TrialScheduler.CONTINUE)
