"""`ssat drift`: the score tables of a pool's newer generations against what was stored at fit time."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ssat_ray.config import GUIDED, Config
from ssat_ray.data.pool import Pool
from ssat_ray.errors import UserError
from ssat_ray.places import Place
from ssat_ray.plan import Plan
from ssat_ray.selection.clusters import DESCRIPTION, describe
from ssat_ray.selection.drift import Drift, Reference, ShardSummary, compare
from ssat_ray.selection.table import ScoreTable, shard_of
from ssat_ray.selection.verdict import STATUSES, Judgement, Status, Thresholds, Verdict, verdict
from ssat_ray.stages.score import SCORERS
from ssat_ray.start import check_grown
from ssat_ray.store import Job, Store


@dataclass(frozen=True)
class ShardDrift:
    """One new shard: of which generation, its number there, its drift and what that says."""

    generation: int
    shard: int
    drift: Drift
    judgement: Judgement


@dataclass(frozen=True)
class GenerationDrift:
    """All rows of one new generation, that is of one append: their drift and what that says."""

    generation: int
    drift: Drift
    judgement: Judgement


@dataclass(frozen=True)
class MethodDrift:
    """All that is new under the clusters of one method (`kmeans` or `gmm`).

    Attributes:
        left_out: new images in shards that could not be read (`pool.on_bad_shard=quarantine`).
    """

    method: str
    whole: Drift
    verdict: Verdict
    generations: tuple[GenerationDrift, ...]
    shards: tuple[ShardDrift, ...]
    left_out: int


def new_scores(config: Config, plan: Plan) -> dict[str, list[Job]]:
    """Method -> `score` jobs of the generations that its clusters were not fitted on, first seed.

    Raises:
        UserError: there are no clusters, or no generation is newer than they.
    """
    methods = {SCORERS[row] for row in config.rows if row in SCORERS} - {"confidence"}
    if not methods:
        rows = ", ".join(
            row for row, scorer in SCORERS.items() if scorer != "confidence" and row not in GUIDED
        )
        raise UserError(
            f"rows={list(config.rows)} fit no clusters, so nothing can drift from them; "
            f"add one of {rows}."
        )
    check_grown(config)
    found: dict[str, dict[str, Job]] = {method: {} for method in sorted(methods)}
    for (_, seed, stage), job in plan.jobs.items():
        new = job.stage == "score" and _generation(job) >= config.pool.cluster_generations
        if new and seed == config.seeds[0] and job.params["scorer"] in found:
            found[job.params["scorer"]][stage] = job
    return {method: sorted(jobs.values(), key=_generation) for method, jobs in found.items()}


def _generation(job: Job) -> int:
    """Of a `score` job on an external pool; 0 for any other source."""
    return int(job.inputs["pool"].params.get("generation", 0))


def missing_shards(plan: Plan, store: Store) -> int:
    """Shards of the pool that no score table has yet, counted once a table."""
    unscored = [job for job in plan.unique if job.stage == "score" and store.record(job) is None]
    return sum(len(_shards(job)) for job in unscored)


def _shards(job: Job) -> list[dict[str, Any]]:
    pool = job.inputs["pool"]
    return Pool(str(pool.location)).generations[pool.params["generation"]]


def measure(
    method: str, jobs: list[Job], store: Store, thresholds: Thresholds | None = None
) -> MethodDrift:
    """The drift of every shard in the score tables of `jobs`, of each generation and of all together.

    Raises:
        UserError: the clusters have no reference, or a table is missing, damaged, empty or has not the rows
            of its record.
    """
    reference = read_reference(store.folder(jobs[0].inputs["clusters"]))
    whole = reference.summary()
    batches: dict[int, Drift] = {}
    found: list[tuple[int, int, Drift]] = []
    left_out = 0
    for job in jobs:
        record = store.record(job)
        if record is None:
            raise UserError(f"{job.label} has no score table; make it with `ssat score PRESET`.")
        left_out += sum(shard["rows"] for shard in record.get("quarantined", []))
        batch = reference.summary()
        for path in ScoreTable.of_folders([store.folder(job)]).files:
            summary = summarise(path, reference)
            batch.merge(summary)
            found.append((_generation(job), shard_of(path), compare(reference, summary)))
        if batch.num_rows:
            whole.merge(batch)
            batches[_generation(job)] = compare(reference, batch)
    if not found:
        raise UserError(
            f"{jobs[0].label}: no new shard could be read, {left_out:,} images left out."
        )
    together = compare(reference, whole)
    said = verdict(together, batches, [drift for _, _, drift in found], thresholds)
    generations = tuple(
        GenerationDrift(*one, judgement)
        for one, judgement in zip(batches.items(), said.generations, strict=True)
    )
    shards = tuple(
        ShardDrift(*one, judgement) for one, judgement in zip(found, said.shards, strict=True)
    )
    return MethodDrift(method, together, said, generations, shards, left_out)


def read_reference(folder: Place) -> Reference:
    """What a `cluster` artefact says of the score table at fit time; UserError if it says nothing."""
    try:
        return Reference.from_json(describe(folder)["reference"])
    except (OSError, KeyError, ValueError) as error:
        raise UserError(
            f"{folder / DESCRIPTION} has no usable reference to compare new shards with ({error!r}); "
            "remove its folder and cluster again with `ssat cluster PRESET`."
        ) from error


def summarise(path: Place, reference: Reference) -> ShardSummary:
    """What is compared of one file of a score table, read in chunks."""
    summary = reference.summary()
    try:
        for chunk in ScoreTable([path]).read(["score", "cluster", reference.measure]):
            summary.add(chunk)
    except ValueError as error:
        raise UserError(f"{path}: {error}. Remove this folder and run again.") from error
    return summary


def status(found: list[MethodDrift]) -> Status:
    """The worst of the methods' verdicts."""
    return max((one.verdict.status for one in found), key=STATUSES.index)


def exit_code(found: list[MethodDrift]) -> int:
    """0 for stable and watch, 3 for re-cluster."""
    return max(one.verdict.exit_code for one in found)


def command_over_all(
    preset: str, overrides: Sequence[str], name: str | None, num_generations: int
) -> str:
    """The command that fits the clusters over all generations, for a shell; the rest as it was given."""
    key = "pool.cluster_generations"
    kept = [one for one in overrides if one.partition("=")[0].strip() != key]
    settings = [*kept, f"{key}={num_generations}"]
    arguments = [part for setting in settings for part in ("--set", setting)]
    named = [] if name is None else ["--name", name]
    return shlex.join(["ssat", "run", preset, *arguments, *named])


def advice(found: list[MethodDrift], command: str) -> str:
    """What to do about it, in a sentence; `command` clusters over all generations."""
    if status(found) == "re-cluster":
        return f"The clusters no longer fit the pool; cluster again over all of it: {command}"
    if status(found) == "watch":
        return "The clusters can stay; compare again after the next append."
    return "The clusters still fit the pool; go on with them."


def to_json(found: list[MethodDrift], command: str, scored: int) -> str:
    """All numbers and words, for automation; what is not finite is null.

    Args:
        command: clusters over all generations.
        scored: shards that were scored for this comparison.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [plain(inner) for inner in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    content = {
        "status": status(found),
        "exit_code": exit_code(found),
        "advice": advice(found, command),
        "shards_scored": scored,
        "methods": [dataclasses.asdict(one) for one in found],
    }
    return json.dumps(plain(content), indent=1, allow_nan=False)
