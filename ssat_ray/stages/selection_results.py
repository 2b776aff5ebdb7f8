"""results.json of a run that ends with a selection: pools, clusters, scores, choices, times and memory."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from ssat_ray.data.pool import Pool
from ssat_ray.memory import summarise
from ssat_ray.provenance import git_commit, machine
from ssat_ray.selection.clusters import describe
from ssat_ray.stages.shards import left_out_warnings
from ssat_ray.store import Job, Store

SCHEMA = 1
Record = dict[str, Any]
_CARRIED = (
    "seconds",
    "startup_seconds",
    "rows",
    "peak_pss_bytes",
    "bytes_read",
    "bytes_written",
    "quarantined",
)


def selection_results(
    name: str,
    config: dict[str, Any],
    jobs: dict[tuple[str, int, str], Job],
    store: Store,
    sessions: list[Record],
) -> Record:
    """The whole of results.json (docs/results.md).

    Args:
        name: of the run.
        config: the configuration tree.
        jobs: (row, seed, stage) -> published job.
        sessions: memory series (memory.py).
    """
    unique: dict[str, Job] = {}
    for job in jobs.values():
        unique |= {j.digest: j for j in job.closure()}
    records = {digest: _record(store, job) for digest, job in unique.items()}
    choices = [(row, seed, job) for (row, seed, stage), job in jobs.items() if stage == "select"]
    clusters = [job for job in unique.values() if job.stage == "cluster"]
    pools = [
        Pool(store.folder(job)) for job in choices[0][2].inputs.values() if job.stage != "score"
    ]
    return {
        "schema": SCHEMA,
        "kind": "selection",
        "name": name,
        "preset": config["preset"],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "machine": machine(),
        "config": config,
        "seeds": config["seeds"],
        "pool": {
            "source": config["pool"]["source"],
            "images": sum(map(len, pools)),
            "image_shape": list(pools[0].image_shape),
            "bytes": sum(pool.num_bytes for pool in pools),
            "generations": [{"rows": len(pool), "bytes": pool.num_bytes} for pool in pools],
        },
        "selections": [_selection(row, seed, records[job.digest]) for row, seed, job in choices],
        "clusters": [_clusters(store, job) for job in clusters],
        "scores": [
            {"row": row, "seed": seed, "cut": records[job.digest]["cut"], **histogram}
            for row, seed, job in choices
            if (histogram := records[job.digest].get("histogram"))
        ],
        "stages": [_stage(job, records[digest]) for digest, job in unique.items()],
        "sessions": sessions,
        "memory": summarise(sessions),
        "total_wall_seconds": max(_stage_seconds(records), _session_seconds(sessions)),
        "warnings": left_out_warnings(
            (job.label, records[digest]) for digest, job in unique.items()
        ),
    }


def _record(store: Store, job: Job) -> Record:
    record = store.record(job)
    assert record is not None, f"{job.label} is reported before it is published"
    return record


def _stage_seconds(records: dict[str, Record]) -> float:
    """What the stages took, those of earlier runs included."""
    return sum(r["seconds"] + r.get("startup_seconds", 0.0) for r in records.values())


def _session_seconds(sessions: list[Record]) -> float:
    """How long this run's sessions lasted, Ray's start and all waiting included."""
    return sum(session["samples"][-1][0] for session in sessions if session["samples"])


def _stage(job: Job, record: Record) -> Record:
    found = {key: record[key] for key in _CARRIED if key in record}
    if isinstance(found.get("rows"), dict):  # a labelled set counts its splits
        found["rows"] = sum(found["rows"].values())
    return {"stage": job.stage, "label": job.label, "digest": job.digest, **found}


def _selection(row: str, seed: int, record: Record) -> Record:
    keys = ("boundary", "cut", "tied_at_cut", "duplicates", "bytes_written")
    return {
        "row": row,
        "seed": seed,
        "images": record["rows"],
        "of_images": record["of_rows"],
        **{key: record[key] for key in keys},
        "quarantined": record.get("quarantined", []),
    }


def _clusters(store: Store, job: Job) -> Record:
    about = describe(store.folder(job))
    counts = about["reference"]["cluster_counts"]
    history = about.get("inertia_per_iteration") or about["log_likelihood_per_iteration"]
    return {
        "method": about["method"],
        "seed": job.params["seed"],
        "k": about["k"],
        "rows": about["rows"],
        "history": history,
        "converged": about["converged"],
        "shares": [count / sum(counts) for count in counts],
    }
