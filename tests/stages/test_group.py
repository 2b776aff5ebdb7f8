"""Training groups: two gloo workers, started once for all jobs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ssat_ray.config import RuntimeConfig
from ssat_ray.data.pool import Pool
from ssat_ray.errors import Diverged, UserError
from ssat_ray.loading import load_config
from ssat_ray.plan import build_plan
from ssat_ray.stages.base import Rungs, Task
from ssat_ray.stages.group import (
    FAILED,
    FAULT,
    engine_of,
    failure_of,
    forget_failures,
    hopeless,
    rounds,
    settled,
    states_of,
)
from ssat_ray.store import RAY_TRAIN, Job, Store
from ssat_ray.training.world import World

JOBS = [Job("train", 1, {"seed": seed}, {}) for seed in range(3)]


def test_jobs_that_pause_reach_a_rung_together_before_any_ends(tmp_path: Path) -> None:
    tasks = [Task.of(job, Store(tmp_path)) for job in JOBS]
    pausing = frozenset(job.digest for job in JOBS[:2])
    assert list(rounds(tasks, Rungs("trial", pausing, (20, 40)))) == [
        (20, tasks[:2]),
        (40, tasks[:2]),
        (None, tasks),
    ]
    assert list(rounds(tasks, None)) == [(None, tasks)]


def test_a_published_job_is_settled_and_leaves_no_states(tmp_path: Path, s3: Any) -> None:
    """As after a kill between the publication and the removal of the states."""
    bucket = s3.bucket()
    runtime = RuntimeConfig(checkpoints=s3.uri(f"{bucket}/states"))
    job = build_plan(load_config("digits", ["rows=[none,full]"])).jobs["none", 0, "train"]
    task = Task.of(job, Store(tmp_path / "store"))
    states_of(task, runtime).save(7, {"step": 7})
    key = f"states/{job.digest}/0000000007.pt"
    assert not settled(task, World(), runtime) and s3.keys(bucket) == [key]
    task.publish({"seconds": 1.0})
    assert settled(task, World(1, 2), runtime) and s3.keys(bucket) == [key]
    assert settled(task, World(0, 2), runtime) and s3.keys(bucket) == []


def test_how_a_worker_computes_follows_the_settings() -> None:
    plain = engine_of(RuntimeConfig())
    assert (plain.exact, plain.compile, plain.channels_last) == (True, False, True)
    asked = engine_of(RuntimeConfig(exact=False, compile=True, channels_last=False))
    assert (asked.exact, asked.compile, asked.channels_last) == (False, True, False)


@pytest.mark.parametrize("note", [FAILED, FAULT])
def test_a_job_that_failed_is_settled(tmp_path: Path, note: str) -> None:
    job = build_plan(load_config("digits", ["rows=[none,full]"])).jobs["none", 0, "train"]
    task = Task.of(job, Store(tmp_path / "store"))
    task.folder.mkdir(parents=True)
    (task.folder / note).write_text("why")
    assert settled(task, World(), RuntimeConfig())


def test_a_note_says_whose_fault_it_is(tmp_path: Path) -> None:
    assert failure_of(tmp_path) is None
    (tmp_path / FAILED).write_text("the loss is NaN")
    found = failure_of(tmp_path)
    assert isinstance(found, Diverged) and str(found) == "the loss is NaN"
    (tmp_path / FAULT).write_text("a shard is damaged")
    assert isinstance(failure_of(tmp_path), UserError), "which the user can mend"
    forget_failures([tmp_path, tmp_path / "none"])
    assert failure_of(tmp_path) is None


@pytest.mark.parametrize("note", [FAILED, FAULT])
def test_what_only_failed_configurations_need_is_left_out(tmp_path: Path, note: str) -> None:
    """Two settings with two seeds each, and a baseline that both need."""
    jobs = [Job("train", 1, {"of": of, "seed": seed}, {}) for of in "ab" for seed in (0, 1)]
    jobs.append(Job("train", 1, {"of": "full", "seed": 0}, {}))
    tasks = [Task.of(job, Store(tmp_path)) for job in jobs]
    digests = [job.digest for job in jobs]
    configurations = (frozenset(digests[:2] + digests[4:]), frozenset(digests[2:]))

    def left_out(configurations: tuple[frozenset[str], ...]) -> list[int]:
        found = [hopeless(t, [o for o in tasks if o is not t], configurations) for t in tasks]
        return [number for number, hope in enumerate(found) if hope]

    assert left_out(configurations) == []
    tasks[0].folder.mkdir(parents=True)
    (tasks[0].folder / note).write_text("why")
    assert left_out(configurations) == [1], "the other setting still needs the baseline"
    assert left_out(()) == [], "an ordinary run goes on with every row"
    tasks[3].folder.mkdir(parents=True)
    (tasks[3].folder / note).write_text("why")
    assert left_out(configurations) == [1, 2, 4]


@pytest.mark.ray
def test_a_group_leaves_nothing_but_artefacts(tiny_run: Any) -> None:
    folder = tiny_run.store.root / RAY_TRAIN
    assert [path.name for path in folder.glob("*")] == []


@pytest.mark.ray
@pytest.mark.parametrize("stage", ["intermediate", "pretrain", "train"])
def test_two_workers_in_one_gloo_group(tiny_run: Any, stage: str) -> None:
    for job in tiny_run.plan.unique:
        if job.stage == stage:
            record = tiny_run.store.record(job)
            assert record["world_size"] == 2
            assert record["backend"] == "gloo"
            assert len(set(record["worker_pids"])) == 2
            assert record["seconds"] > 0
            assert record["peak_pss_bytes"] > 50 * 2**20


@pytest.mark.ray
def test_all_rows_train_in_the_same_worker_group(tiny_run: Any) -> None:
    """The start of a worker group is paid once, not once a row."""
    jobs = [j for j in tiny_run.plan.unique if j.stage == "train"]
    records = [tiny_run.store.record(j) for j in jobs if j.params["recipe"] != "best-of-recipes"]
    assert len(records) == 10
    assert len({tuple(r["worker_pids"]) for r in records}) == 1
    assert sum(r["startup_seconds"] > 1 for r in records) == 1


FAULTY = """\
rows: [none, full]
model: {widths: [8, 16], strides: [2, 2]}
pool: {source: external, path: pool}
objective: {num_steps: 1}
train: {max_steps: 20, eval_every: 20, batch_size: 32, bn_group: 16, window_mib: 0.01}
evaluate: {pgd_steps: 1, apgd_steps: 1}
"""


@pytest.mark.ray
@pytest.mark.slow
def test_a_job_whose_input_is_at_fault_fails_alone(selections: Any, tmp_path: Path) -> None:
    """And with a message and an exit code as for any other mistake."""
    pool = Pool(selections.pool(tmp_path / "pool", 500, 100))
    path = Path(pool.shard_path(3))
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    (tmp_path / "preset.yaml").write_text(FAULTY)
    command = [str(Path(sys.executable).with_name("ssat")), "train", "preset.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert f"train full seed 0: {path}" in done.stderr and "was altered" in done.stderr
    plan = build_plan(
        load_config(str(tmp_path / "preset.yaml"), [f"pool.path={tmp_path / 'pool'}"])
    )
    store = Store(tmp_path / "store")
    assert store.record(plan.jobs["none", 0, "train"]) is not None
    assert store.record(plan.jobs["full", 0, "train"]) is None
