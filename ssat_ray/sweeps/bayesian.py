"""Bayesian multi-objective search by Optuna through Ray Tune, which is told what earlier commands have found."""

from __future__ import annotations

from typing import Any

from ssat_ray.errors import UserError
from ssat_ray.sweeps.record import FINISHED, Record, objectives
from ssat_ray.sweeps.space import Axis

STUDY = "sweep"


def search(record: Record) -> Any:
    """A searcher for Ray Tune over the record's space.

    Finished trials are part of its study; settings that were under way when an earlier command ended come first.

    Raises:
        UserError: Optuna is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise UserError("search=bayesian needs the package optuna: pip install optuna.") from error
    from ray.tune.search.optuna import OptunaSearch

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
    for trial in record.of(FINISHED):
        found = objectives(trial["results"], trial["row"])
        study.add_trial(
            optuna.trial.create_trial(
                params=trial["settings"],
                distributions=space,
                values=[found[name] for name in names],
            )
        )
    for point in record.due:
        study.enqueue_trial(point.settings)
    return OptunaSearch(
        space,
        metric=names,
        mode=modes,
        sampler=optuna.samplers.TPESampler(seed=sweep.search_seed + len(study.trials)),
        study_name=STUDY,
        storage=storage,
    )


def distribution(axis: Axis) -> Any:
    """An axis in Optuna's terms."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if axis.kind == "choice":
        return CategoricalDistribution(axis.values)
    low, high = axis.values
    kind = IntDistribution if axis.kind.endswith("integer") else FloatDistribution
    return kind(low, high, log=axis.kind.startswith("log"))
