"""Bayesian multi-objective search by Optuna through Ray Tune, which is told what earlier commands have found."""

from __future__ import annotations

import random
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from ray.tune.search.optuna import OptunaSearch

from ssat_ray.store import canonical_json
from ssat_ray.sweeps.axis import Axis
from ssat_ray.sweeps.record import DIVERGED, ENDED, FAILED, FINISHED, Record, objectives
from ssat_ray.sweeps.space import MOST_DRAWS, Space

STUDY = "sweep"


class Search(OptunaSearch):
    """Ray Tune's Optuna searcher, which proposes no point twice.

    Optuna may, most of all in a space of few points. It is told what the point has achieved, if it has ended, and the trial
    gets a point drawn at random instead.

    Args:
        record: of the sweep, as it is when a point is asked for.
        options: of OptunaSearch.
    """

    def __init__(self, record: Record, **options: Any) -> None:
        super().__init__(**options)
        self._record = record
        self._random = random.Random(record.space.sweep.search_seed + len(record.trials))
        self._proposed = {canonical_json(t["settings"]) for t in record.of(*ENDED, FAILED)}

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """Settings of the trial that Ray Tune calls so."""
        settings: dict[str, Any] = super().suggest(trial_id)
        while canonical_json(settings) in self._proposed:
            other = self._unseen()
            if other is None:
                break
            self._answer(trial_id, settings)
            self._ot_study.enqueue_trial(other)
            settings = super().suggest(trial_id)
        self._proposed.add(canonical_json(settings))
        return settings

    def _answer(self, trial_id: str, settings: dict[str, Any]) -> None:
        """Tell the study what is known of a point that it has proposed again."""
        asked = self._ot_trials.pop(trial_id)
        trial = self._record.trials.get(self._record.space.name_of(settings))
        if trial is not None and trial["status"] == FINISHED:
            self._ot_study.tell(asked, values_of(trial, self._record.space))
        else:
            self._ot_study.tell(asked, state=TrialState.FAIL)

    def _unseen(self) -> dict[str, Any] | None:
        """Settings drawn at random that were not proposed yet; None if so many draws find none."""
        axes = self._record.space.sweep.space
        for _ in range(MOST_DRAWS):
            found = {key: axis.draw(self._random.random()) for key, axis in axes.items()}
            if canonical_json(found) not in self._proposed:
                return found
        return None

    def save(self, checkpoint_path: str) -> None:
        """Nothing: `sweep.json` is what a later command goes on from."""


def values_of(trial: dict[str, Any], space: Space) -> list[float]:
    """What a finished trial has achieved, in the order of the sweep's objectives."""
    found = objectives(trial["results"], trial["row"])
    return [found[name] for name in space.sweep.objectives]


def search(record: Record) -> Search:
    """A searcher for Ray Tune over the record's space.

    Finished trials are part of its study, diverged ones and refused points as failed ones; settings that were under way when
    an earlier command ended come first.
    """
    sweep = record.space.sweep
    names = list(sweep.objectives)
    modes = ["max" if name == "validation" else "min" for name in names]
    space = {key: distribution(axis) for key, axis in sweep.space.items()}
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(
        storage=storage,
        study_name=STUDY,
        directions=["maximize" if mode == "max" else "minimize" for mode in modes],
    )
    for trial in record.of(FINISHED, FAILED, DIVERGED):
        done = trial["status"] == FINISHED
        study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.COMPLETE if done else TrialState.FAIL,
                params=trial["settings"],
                distributions=space,
                values=values_of(trial, record.space) if done else None,
            )
        )
    for point in record.due:
        study.enqueue_trial(point.settings)
    return Search(
        record,
        space=space,
        metric=names,
        mode=modes,
        sampler=optuna.samplers.TPESampler(seed=sweep.search_seed + len(study.trials)),
        study_name=STUDY,
        storage=storage,
    )


def distribution(axis: Axis) -> Any:
    """An axis in Optuna's terms."""
    if axis.kind == "choice":
        return CategoricalDistribution(axis.values)
    low, high = axis.values
    kind = IntDistribution if axis.kind.endswith("integer") else FloatDistribution
    return kind(low, high, log=axis.kind.startswith("log"))
