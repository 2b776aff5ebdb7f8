"""results.json: every row's accuracies, differences, times, steps, memory and bytes (docs/results.md)."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import numpy as np

from ssat_ray.adversarial.evaluation import worst_class
from ssat_ray.adversarial.intervals import bootstrap_interval, paired_difference
from ssat_ray.places import Place
from ssat_ray.provenance import git_commit, machine
from ssat_ray.report.words import ATTACKS, STAGES, machine_name, short_commit
from ssat_ray.stages.base import Task
from ssat_ray.stages.evaluate import read_flags
from ssat_ray.stages.quality import QUALITY
from ssat_ray.stages.shards import left_out_warnings
from ssat_ray.stages.soundness import masking
from ssat_ray.store import Job, Store

SCHEMA = 1
Record = dict[str, Any]


class Artefacts:
    """The artefacts behind a report. Inputs of the report job are named `row/seed/stage`."""

    def __init__(self, task: Task) -> None:
        self.store = Store(task.store_root)
        self.config: dict[str, Any] = task.job.config
        self.jobs: dict[tuple[str, int, str], Job] = {}
        for name, job in task.job.inputs.items():
            row, seed, stage = name.split("/")
            self.jobs[row, int(seed), stage] = job
        self.rows: list[str] = list(self.config["rows"])
        self.seeds: list[int] = list(self.config["seeds"])

    def job(self, row: str, seed: int, stage: str) -> Job | None:
        return self.jobs.get((row, seed, stage))

    def folder(self, row: str, seed: int, stage: str) -> Place:
        return self.store.folder(self.jobs[row, seed, stage])

    def record(self, row: str, seed: int, stage: str) -> Record:
        return self.record_of(self.jobs[row, seed, stage])

    def record_of(self, job: Job) -> Record:
        record = self.store.record(job)
        assert record is not None, f"{job.label} is reported before it is published"
        return record

    @cached_property
    def unique_jobs(self) -> list[Job]:
        """Every artefact behind the report once, dependencies first."""
        found: dict[str, Job] = {}
        for job in self.jobs.values():
            found |= {j.digest: j for j in job.closure()}
        return list(found.values())

    def flags(self, row: str, attack: str) -> tuple[list[int], np.ndarray]:
        """Seeds that have the attack, and flags (S, N) bool."""
        seeds = [s for s in self.seeds if (row, s, f"evaluate:{attack}") in self.jobs]
        return seeds, np.array(
            [read_flags(self.folder(row, s, f"evaluate:{attack}")) for s in seeds]
        )


def build_results(artefacts: Artefacts) -> Record:
    """The whole of results.json."""
    labelled = artefacts.record(artefacts.rows[0], artefacts.seeds[0], "labelled")
    rows = [_row(artefacts, row) for row in artefacts.rows]
    config = artefacts.config
    made_by = _made_by([artefacts.record_of(job) for job in artefacts.unique_jobs])
    return {
        "schema": SCHEMA,
        "name": config["preset"],
        "preset": config["preset"],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "machine": machine(),
        "made_by": made_by,
        "config": config,
        "data": {
            "dataset": config["data"]["name"],
            **{f"num_{name}": count for name, count in labelled["rows"].items()},
            "num_classes": labelled["num_classes"],
            "image_shape": labelled["image_shape"],
            "pool_images": _pool_images(artefacts),
        },
        "seeds": artefacts.seeds,
        "norm": config["threat"]["norm"],
        "eps": config["threat"]["eps"],
        "warnings": [
            *masking(rows),
            *_limits(rows, config["train"]["max_steps"]),
            *_world_sizes(rows),
            *_mixture(made_by),
            *left_out_warnings((j.label, artefacts.record_of(j)) for j in artefacts.unique_jobs),
        ],
        "rows": rows,
        "stages": [_stage(artefacts, job) for job in artefacts.unique_jobs],
        "total_wall_seconds": sum(
            record["seconds"] + record.get("startup_seconds", 0.0)
            for record in map(artefacts.record_of, artefacts.unique_jobs)
            if "recipe" not in record  # the kept recipe is counted where it was trained
        ),
    }


def _pool_images(artefacts: Artefacts) -> int:
    """Images of the pool that rows select from, all generations together; 0 where no row has one."""
    pools = {
        (seed, stage): artefacts.record_of(job)
        for (_, seed, stage), job in artefacts.jobs.items()
        if seed == artefacts.seeds[0] and stage.split(".")[0] == "pool"
    }
    return sum(record["rows"] for record in pools.values())


def _row(artefacts: Artefacts, row: str) -> Record:
    seeds = artefacts.seeds
    trained = [artefacts.record(row, seed, "train") for seed in seeds]
    charged = [_charged(artefacts, row, seed) for seed in seeds]
    stages = [stage for stage in STAGES if stage in charged[0]]
    seconds = {stage: _mean([c[stage]["seconds"] for c in charged]) for stage in stages}
    memory = {stage: max(c[stage].get("peak_pss_bytes", 0) for c in charged) for stage in stages}
    return {
        "row": row,
        "seeds": seeds,
        "images": trained[0]["images"],
        "recipe": [record.get("recipe", "default") for record in trained],
        "accuracy": _accuracy(artefacts, row),
        "differences": _differences(artefacts, row),
        "seconds": {**seconds, "total": sum(seconds.values())},
        "seconds_all_recipes": _mean(
            [record.get("seconds_all_recipes") or record["seconds"] for record in trained]
        ),
        "steps": {
            "total": [record["steps"] for record in trained],
            "plateau": [record["plateau_step"] for record in trained],
            "hit_max_steps": [record["hit_max_steps"] for record in trained],
        },
        "seconds_train": [record["seconds"] for record in trained],
        "reach_full_minus_half": _reach(artefacts, row),
        "flops": _mean([record["flops"] for record in trained]),
        "validation": [record["val_pgd"] for record in trained],
        "world_size": [record.get("world_size") for record in trained],
        "peak_memory_bytes": {**memory, "max": max(memory.values())},
        "train_rise_bytes": [_rise(record) for record in trained],
        "bytes": {
            "read": _mean([sum(c[s].get("bytes_read", 0) for s in stages) for c in charged]),
            "stored": _mean([sum(c[s].get("bytes_written", 0) for s in stages) for c in charged]),
        },
        "history": [
            [[h["step"], h["seconds"], h["val_pgd"]] for h in r["history"]] for r in trained
        ],
        **_quality(artefacts, row),
    }


def _quality(artefacts: Artefacts, row: str) -> Record:
    """`quality` of a guided row's images by seed; nothing for other rows."""
    if artefacts.job(row, artefacts.seeds[0], "quality") is None:
        return {}
    folders = [artefacts.folder(row, seed, "quality") for seed in artefacts.seeds]
    return {"quality": [json.loads((folder / QUALITY).read_text()) for folder in folders]}


def _charged(artefacts: Artefacts, row: str, seed: int) -> dict[str, Record]:
    """What a row pays for, by stage; a shared stage is charged to every row that needs it.

    The generations of an appended pool add up.
    """
    found: dict[str, Record] = {}
    for (r, s, _), job in artefacts.jobs.items():
        if (r, s) != (row, seed) or job.stage not in STAGES:
            continue
        record = artefacts.record_of(job)
        other = found.get(job.stage, {})
        sums = ("seconds", "bytes_read", "bytes_written")
        found[job.stage] = {
            **record,
            **{key: record.get(key, 0) + other.get(key, 0) for key in sums},
            "peak_pss_bytes": max(r.get("peak_pss_bytes", 0) for r in (record, other)),
        }
    return found


def _accuracy(artefacts: Artefacts, row: str) -> Record:
    accuracy = {}
    for attack in ATTACKS:
        seeds, flags = artefacts.flags(row, attack)
        if not seeds:
            continue
        records = [artefacts.record(row, seed, f"evaluate:{attack}") for seed in seeds]
        by_class = _by_class([record["accuracy_by_class"] for record in records])
        accuracy[attack] = {
            **_interval(bootstrap_interval(flags)),
            "by_seed": [100 * float(f.mean()) for f in flags],
            "seeds": seeds,
            "name": records[0]["name"],
            "by_class": by_class,
            "worst_class": worst_class(by_class),
            "signs": [record["signs"] for record in records],
        }
    return accuracy


def _by_class(accuracies: list[list[float | None]]) -> list[float | None]:
    """By class the mean over seeds, in percent; None for a class without a test image."""
    known = [
        [value for value in values if value is not None] for values in zip(*accuracies, strict=True)
    ]
    return [100 * _mean(values) if values else None for values in known]


def _differences(artefacts: Artefacts, row: str) -> Record:
    """PGD accuracy minus that of the baselines, in points, paired by seed and test image."""
    _, own = artefacts.flags(row, "pgd")
    differences: Record = {}
    for baseline in ("none", "random", "full"):
        if baseline != row and baseline in artefacts.rows:
            _, other = artefacts.flags(baseline, "pgd")
            differences[baseline] = {**_interval(paired_difference(own, other)), "paired": True}
    return differences


def _interval(values: tuple[float, float, float]) -> Record:
    return {name: 100 * float(v) for name, v in zip(("mean", "low", "high"), values, strict=True)}


def _reach(artefacts: Artefacts, row: str) -> Record | None:
    """Steps and seconds until validation accuracy first reaches that of `full` minus 0.5 points."""
    if "full" not in artefacts.rows:
        return None
    steps: list[int | None] = []
    seconds: list[float | None] = []
    for seed in artefacts.seeds:
        goal = artefacts.record("full", seed, "train")["val_pgd"] - 0.5
        history = artefacts.record(row, seed, "train")["history"]
        hit = next((h for h in history if h["val_pgd"] >= goal), None)
        steps.append(hit and hit["step"])
        seconds.append(hit and hit["seconds"])
    return {"steps": steps, "seconds": seconds}


def _rise(record: Record) -> int | None:
    """How far memory rose above that at the start; None in a record without the baseline."""
    baseline = record.get("baseline_pss_bytes")
    return None if baseline is None else int(record["peak_pss_bytes"] - baseline)


def _made_by(records: list[Record]) -> Record:
    """Commits and machines that trained and attacked, as far as the records name them."""
    makers = [
        record["made_by"]
        for record in records
        if record["stage"] in ("train", "evaluate") and record.get("made_by")
    ]
    return {
        "commits": sorted({maker.get("commit") or "unknown" for maker in makers}),
        "machines": sorted({machine_name(maker.get("machine")) for maker in makers}),
    }


def _limits(rows: list[Record], max_steps: int) -> list[str]:
    """How many trainings ended at the limit."""
    hit = [limit for row in rows for limit in row["steps"]["hit_max_steps"]]
    if not any(hit):
        return []
    return [
        f"{sum(hit)} of {len(hit)} training{'s' if len(hit) > 1 else ''} ended at "
        f"train.max_steps={max_steps} before a plateau, so steps to convergence are lower bounds"
    ]


def _world_sizes(rows: list[Record]) -> list[str]:
    """Rows and seeds whose number of workers is not that of most."""
    found: dict[int, list[str]] = {}
    for row in rows:
        for seed, size in zip(row["seeds"], row["world_size"], strict=True):
            if size is not None:
                found.setdefault(size, []).append(f"{row['row']} (seed {seed})")
    if len(found) < 2:
        return []
    usual = max(found, key=lambda size: len(found[size]))
    others = ", ".join(
        f"{size} for {', '.join(names)}" for size, names in sorted(found.items()) if size != usual
    )
    return [
        f"trainings differ in world_size: {others}; {usual} for the rest. Their seconds are not "
        "comparable"
    ]


def _mixture(made_by: Record) -> list[str]:
    """More than one commit or machine behind the rows."""
    commits, machines = made_by["commits"], made_by["machines"]
    found = []
    if len(commits) > 1:
        found.append(
            f"artefacts of {len(commits)} commits contributed "
            f"({', '.join(map(short_commit, commits))}): the rows may not be of the same code"
        )
    if len(machines) > 1:
        found.append(
            f"artefacts of {len(machines)} machines contributed ({'; '.join(machines)}): "
            "seconds are not comparable across machines"
        )
    return found


def _stage(artefacts: Artefacts, job: Job) -> Record:
    record = artefacts.record_of(job)
    carried = [
        "seconds",
        "startup_seconds",
        "world_size",
        "backend",
        "worker_pids",
        "actor_pids",
        "blocks",
        "rows",
        "label_agreement",
        "peak_pss_bytes",
        "baseline_pss_bytes",
        "bytes_written",
        "bytes_read",
        "steps",
    ]
    kept = {name: record[name] for name in carried if name in record}
    return {
        "stage": job.stage,
        "label": job.label,
        "digest": job.digest,
        "startup_seconds": 0.0,
        **kept,
    }


def _mean(values: list[float]) -> float:
    return float(np.mean(values))
