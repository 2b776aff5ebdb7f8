"""ASHA that goes on after a restart: it knows what trials of earlier commands have reported."""

from __future__ import annotations

from types import SimpleNamespace

from ray.tune.schedulers import ASHAScheduler

from ssat_ray.sweeps.trial import STEP, VALUE


class Halving(ASHAScheduler):
    """Ray Tune's asynchronous successive halving over given rungs.

    Args:
        rungs: steps, each `reduction` times the one before.
        reduction: a trial goes on from a rung if its value is among the best 1/reduction that reached it so far.
        known: name -> [step, value] of trials that are not run again.
    """

    def __init__(
        self, rungs: tuple[int, ...], reduction: int, known: dict[str, list[list[float]]]
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
                self.on_trial_result(None, trial, {STEP: step, VALUE: value})
