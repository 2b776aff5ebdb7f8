"""Outcomes: what one row reached under one configuration, whatever it was read from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ssat_ray.places import Place, local_copy
from ssat_ray.report import words

Flags = npt.NDArray[np.bool_]
VALIDATION = "validation"
"""Measure that stands beside the attacks: PGD on the validation images, by which nothing of the test set is chosen."""
NOT_SETTINGS = ("preset", "goal", "seeds", "rows", "evaluate.autoattack_seeds")
"""Keys of the configuration that say what is compared, not how."""
TEST = ("threat.", "evaluate.", "data.")
"""Settings that change what an accuracy is of."""
BASELINES = ("none", "random", "full")
"""Rows that others are measured by; they may be recommended only where there are no others."""
TRAINED = ("intermediate", "pretrain", "finetune", "train")
"""Charged stages that a group of workers trains."""
EMBEDDED = ("generate", "cluster", "score")
"""Charged stages whose actors have a GPU where there are any."""


@dataclass(frozen=True)
class Outcome:
    """One row under one configuration, with all its seeds.

    Attributes:
        row: of the method's tables.
        trials: runs that have it: `digits`, `<sweep>/<trial>`, a path, or `<tracking URI>#<parent run>`.
        source: where it was read: a folder or a tracking URI.
        candidate: whether it may be recommended; baselines are not, where there is anything else.
        settings: dotted key to value, of everything that it depends on as far as is known.
        seeds: of the row.
        accuracy: attack, or `validation`, to seed to percent.
        names: attack to what it may be called.
        seconds: charged stage to seconds, mean over seeds, and `total`.
        labelled, pool: images that it trained on; None where not recorded.
        peak_memory: bytes, of the largest charged stage; None where not recorded.
        gpu_seconds: GPUs times seconds, of the charged stages that had any; None where not known.
        machines: that trained and attacked.
        digests: seed to digest of the training; empty where not known.
        test_set: digest of the labelled set with its test images; None where not known.
        flags: (attack, seed) to the file of per-image flags, where it is at hand.
        lower_bounds: seeds whose training `train.max_steps` ended, so that its time is a lower bound.
        world_sizes: how many workers trained; empty where not known.
    """

    row: str
    trials: tuple[str, ...]
    source: str
    candidate: bool
    settings: dict[str, Any]
    seeds: tuple[int, ...]
    accuracy: dict[str, dict[int, float]]
    names: dict[str, str]
    seconds: dict[str, float]
    labelled: int | None = None
    pool: int | None = None
    peak_memory: float | None = None
    gpu_seconds: float | None = None
    machines: tuple[str, ...] = ()
    digests: dict[int, str] = field(default_factory=dict)
    test_set: str | None = None
    flags: dict[tuple[str, int], Place] = field(default_factory=dict)
    lower_bounds: tuple[int, ...] = ()
    world_sizes: tuple[int, ...] = ()

    @property
    def images(self) -> int | None:
        """Labelled and pool images together."""
        if self.labelled is None or self.pool is None:
            return None
        return self.labelled + self.pool

    def mean(self, attack: str) -> float:
        """Mean accuracy over the seeds that have the attack, percent."""
        return float(np.mean(list(self.accuracy[attack].values())))

    def ran(self, attack: str, seeds: Iterable[int]) -> bool:
        """Whether all of these seeds have the attack."""
        return set(seeds) <= set(self.accuracy[attack])

    def values(self, attack: str, seeds: Iterable[int]) -> npt.NDArray[np.float64]:
        """(S,) accuracy in percent under these seeds."""
        return np.array([self.accuracy[attack][seed] for seed in seeds])

    def load_flags(self, attack: str, seeds: Iterable[int]) -> Flags | None:
        """(S, N) bool, which test images stay correct; None where a file is missing."""
        paths = [self.flags.get((attack, seed)) for seed in seeds]
        if not paths or any(path is None for path in paths):
            return None
        loaded = [
            np.load(local_copy(path), allow_pickle=False) for path in paths if path is not None
        ]
        return np.stack(loaded) if len({len(flags) for flags in loaded}) == 1 else None


@dataclass(frozen=True)
class Unfinished:
    """A trial without results.

    Attributes:
        status: what the sweep says of it: stopped, failed, diverged, or still to do.
        cause: why it failed, or where it was stopped, in words; empty where there is none.
    """

    name: str
    settings: dict[str, Any]
    status: str
    cause: str


@dataclass(frozen=True)
class Reading:
    """What was read from one or several sources.

    Attributes:
        outcomes: in the order of the sources.
        unfinished: trials of sweeps that have none.
        keys: settings that sweeps vary, in their order.
        warnings: name of a run, and what to know of it before reading.
        spent: (digest, seconds) of every artefact behind the outcomes to its seconds with start-up; None
            where a source does not say.
        commits: of the code behind them.
    """

    outcomes: tuple[Outcome, ...] = ()
    unfinished: tuple[Unfinished, ...] = ()
    keys: tuple[str, ...] = ()
    warnings: tuple[tuple[str, str], ...] = ()
    spent: dict[tuple[str, float], float] | None = field(default_factory=dict)
    commits: tuple[str, ...] = ()

    def __add__(self, other: Reading) -> Reading:
        both = self.spent is not None and other.spent is not None
        return Reading(
            self.outcomes + other.outcomes,
            self.unfinished + other.unfinished,
            tuple(dict.fromkeys(self.keys + other.keys)),
            tuple(dict.fromkeys(self.warnings + other.warnings)),
            {**(self.spent or {}), **(other.spent or {})} if both else None,
            tuple(dict.fromkeys(self.commits + other.commits)),
        )


def stopped_text(step: int, value: float) -> str:
    """Where early stopping ended a trial, with its robust accuracy (percent) there."""
    return f"at step {step}, with {value:.1f} % on the validation images"


def settings_of(flat: dict[str, Any]) -> dict[str, Any]:
    """The keys of a flat configuration that can make an outcome another one."""
    return {
        key: value
        for key, value in flat.items()
        if key not in NOT_SETTINGS and not key.startswith("runtime.")
    }


def gpu_seconds(
    seconds: dict[str, float], runtime: dict[str, Any], world_sizes: Iterable[int | None]
) -> float:
    """GPUs reserved times seconds, over a row's charged stages.

    Args:
        seconds: charged stage to seconds.
        runtime: `gpus_per_worker`, `train_workers`, `gpus_per_actor` and `actors` of the configuration.
        world_sizes: ranks that trained, by seed; None where not recorded.
    """
    sizes = [size for size in world_sizes if size is not None]
    workers = runtime["train_workers"]
    most = workers if isinstance(workers, int) else workers[-1]
    ranks = float(np.mean(sizes)) if sizes else float(most)
    gpus = dict.fromkeys(TRAINED, runtime["gpus_per_worker"] * ranks)
    gpus |= dict.fromkeys(EMBEDDED, runtime["gpus_per_actor"] * runtime["actors"])
    return float(sum(taken * gpus.get(stage, 0.0) for stage, taken in seconds.items()))


def merged(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Outcomes with the same PGD accuracies by seed and the same seconds become one, with what each knows.

    Two trainings never agree in both, to the microsecond, so they are of the same artefacts. So a baseline
    that trials share is there once, and attacks that a later run added stand beside the others. A setting
    in which the merged ones differ has no part in the outcome and is left out.
    """
    found: dict[Any, Outcome] = {}
    for one in outcomes:
        seconds = sorted((stage, round(s, 6)) for stage, s in one.seconds.items())
        key = (one.row, tuple(sorted(one.accuracy["pgd"].items())), tuple(seconds))
        found[key] = _together(found[key], one) if key in found else one
    return list(found.values())


def _together(a: Outcome, b: Outcome) -> Outcome:
    accuracy = {
        attack: {**b.accuracy.get(attack, {}), **a.accuracy.get(attack, {})}
        for attack in (*words.ATTACKS, VALIDATION)
        if attack in a.accuracy or attack in b.accuracy
    }
    return replace(
        a,
        trials=tuple(dict.fromkeys(a.trials + b.trials)),
        candidate=a.candidate or b.candidate,
        settings={k: v for k, v in a.settings.items() if k in b.settings and b.settings[k] == v},
        accuracy=accuracy,
        names={**b.names, **a.names},
        gpu_seconds=b.gpu_seconds if a.gpu_seconds is None else a.gpu_seconds,
        labelled=b.labelled if a.labelled is None else a.labelled,
        pool=b.pool if a.pool is None else a.pool,
        peak_memory=b.peak_memory if a.peak_memory is None else a.peak_memory,
        machines=tuple(dict.fromkeys(a.machines + b.machines)),
        digests={**b.digests, **a.digests},
        test_set=b.test_set if a.test_set is None else a.test_set,
        flags={**b.flags, **a.flags},
    )
