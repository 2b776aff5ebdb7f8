"""What `ssat drift` reads and says, on hand-written score tables: no Ray, no images."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest

from ssat_ray.config import Config
from ssat_ray.data.pool import manifest
from ssat_ray.drift import (
    advice,
    command_over_all,
    exit_code,
    measure,
    missing_shards,
    new_scores,
    status,
    to_json,
)
from ssat_ray.errors import UserError
from ssat_ray.loading import load_config
from ssat_ray.plan import Plan, build_plan
from ssat_ray.selection.clusters import DESCRIPTION
from ssat_ray.selection.drift import Reference
from ssat_ray.selection.table import encode, score_file
from ssat_ray.store import Store
from ssat_ray.tables import drift_lines, drift_table

K, ROWS = 4, 3000


def _columns(seed: int, spread: float = 1.0, rows: int = ROWS, measure: str = "d1") -> dict:
    rng = np.random.default_rng(seed)
    value = spread * rng.gamma(6.0, 1.0, rows)
    return {
        "id": np.arange(rows),
        measure: value if measure == "d1" else -value,
        "cluster": rng.choice(K, rows, p=[0.4, 0.3, 0.2, 0.1]),
        "score": rng.gamma(2.0, 3.0, rows),
    }


def _pool(folder: Path, generations: list[int]) -> Path:
    """A manifest of so many shards a generation; nothing here reads the shards."""
    folder.mkdir(exist_ok=True)
    entries, first = [], 0
    for shards in generations:
        entries.append([])
        for _ in range(shards):
            entry = {"file": f"shard-{first}.parquet", "rows": 10, "bytes": 1, "sha256": str(first)}
            entries[-1].append(entry | {"first_id": 10 * first, "last_id": 10 * first + 9})
            first += 1
    (folder / "pool.json").write_text(manifest(entries, (1, 8, 8), 10))
    return folder


def _setup(path: Path, generations: list[int], *more: str) -> tuple[Config, Plan, Store]:
    pool = _pool(path / "pool", generations)
    settings = ["goal=selection", "rows=[lcs-km, easy, random]", "pool.source=external"]
    config = load_config("digits", [*settings, f"pool.path={pool}", *more])
    return config, build_plan(config), Store(path / "store")


def _publish(store: Store, job, shards: list[dict], **record: object) -> None:
    folder = store.folder(job)
    folder.mkdir(parents=True)
    for i, columns in enumerate(shards):
        (folder / score_file(2 * i)).write_bytes(encode(columns))
    store.publish(job, {"rows": sum(len(columns["id"]) for columns in shards), **record})


def _reference(store: Store, job, measure: str = "d1") -> None:
    width = 0 if measure == "d1" else 8
    reference = Reference.from_rows(_columns(0, rows=50_000, measure=measure), K, width=width)
    folder = store.folder(job)
    folder.mkdir(parents=True)
    (folder / DESCRIPTION).write_text(json.dumps({"reference": reference.to_json()}))


@pytest.mark.parametrize(
    ("spreads", "said", "code"),
    [([1.0, 1.0], "stable", 0), ([1.0, 1.16], "watch", 0), ([1.3, 1.3], "re-cluster", 3)],
)
def test_verdict_and_exit_code(tmp_path: Path, spreads: list, said: str, code: int) -> None:
    config, plan, store = _setup(tmp_path, [3, 2])
    (job,) = new_scores(config, plan)["kmeans"]
    _reference(store, job.inputs["clusters"])
    _publish(store, job, [_columns(i + 1, spread) for i, spread in enumerate(spreads)])
    found = [measure("kmeans", [job], store)]
    assert (status(found), exit_code(found)) == (said, code)
    assert ("ssat run again.yaml" in advice(found, "ssat run again.yaml")) == (code == 3)
    content = json.loads(to_json(found, "ssat run again.yaml", scored=2))
    assert (content["status"], content["exit_code"], content["shards_scored"]) == (said, code, 2)
    assert len(content["methods"][0]["shards"]) == 2


def test_a_shard_that_gives_the_verdict_is_not_named_twice(tmp_path: Path) -> None:
    config, plan, store = _setup(tmp_path, [1, 1])
    (job,) = new_scores(config, plan)["kmeans"]
    _reference(store, job.inputs["clusters"])
    _publish(store, job, [_columns(1, spread=1.3)])
    (line,) = drift_lines(measure("kmeans", [job], store))
    assert line.startswith("kmeans, re-cluster: All new rows together: Inertia per image is")


def test_shards_that_are_not_the_whole_are_named(tmp_path: Path) -> None:
    config, plan, store = _setup(tmp_path, [1, 2])
    (job,) = new_scores(config, plan)["kmeans"]
    _reference(store, job.inputs["clusters"])
    _publish(store, job, [_columns(1), _columns(2, spread=1.5)])
    shard, verdict = drift_lines(measure("kmeans", [job], store))
    assert shard.startswith("generation 1 shard 2, re-cluster: ")
    assert verdict.startswith("kmeans, ")


def test_the_command_over_all_generations_keeps_what_was_given() -> None:
    overrides = ["rows=[lcs-km]", "pool.cluster_generations=1", "pool.path=my pool"]
    command = command_over_all("mine.yaml", overrides, "first try", 3)
    assert shlex.split(command) == [
        *("ssat", "run", "mine.yaml", "--set", "rows=[lcs-km]", "--set", "pool.path=my pool"),
        *("--set", "pool.cluster_generations=3", "--name", "first try"),
    ]
    assert command_over_all("mine.yaml", [], None, 2) == (
        "ssat run mine.yaml --set pool.cluster_generations=2"
    )


def test_shards_keep_their_numbers_and_generations(tmp_path: Path) -> None:
    """A quarantined shard leaves a gap in the numbers, and is told."""
    config, plan, store = _setup(tmp_path, [1, 3, 1])
    first, second = new_scores(config, plan)["kmeans"]
    _reference(store, first.inputs["clusters"])
    _publish(store, first, [_columns(1), _columns(2)], quarantined=[{"rows": 7}])
    _publish(store, second, [_columns(3)])
    found = measure("kmeans", [first, second], store)
    assert [(s.generation, s.shard) for s in found.shards] == [(1, 0), (1, 2), (2, 0)]
    assert found.left_out == 7
    assert found.whole.num_rows == 3 * ROWS


def test_a_generation_is_judged_alone_and_named(tmp_path: Path) -> None:
    config, plan, store = _setup(tmp_path, [2, 2, 1, 1])
    jobs = new_scores(config, plan)["kmeans"]
    _reference(store, jobs[0].inputs["clusters"])
    for i, (job, spreads) in enumerate(zip(jobs, ([1.0, 1.0], [1.0], [1.2]), strict=True)):
        _publish(store, job, [_columns(10 * i + j, spread) for j, spread in enumerate(spreads)])
    found = measure("kmeans", jobs, store)
    assert [(g.generation, g.drift.num_rows) for g in found.generations] == [
        (1, 2 * ROWS),
        (2, ROWS),
        (3, ROWS),
    ]
    assert (status([found]), exit_code([found])) == ("re-cluster", 3)
    assert found.verdict.together.status == "stable"
    assert drift_lines(found)[-1].startswith("kmeans, re-cluster: Generation 3 alone: ")
    table = drift_table(found)
    says = list(zip(*(column.cells for column in table.columns), strict=True))
    assert [(row[0], row[1], row[-1]) for row in says][-4:] == [
        ("1", "all", "stable"),
        ("2", "all", "stable"),
        ("3", "all", "re-cluster"),
        ("all", "all", "stable"),
    ]


def test_a_mixture_is_compared_by_its_log_likelihood(tmp_path: Path) -> None:
    config, plan, store = _setup(tmp_path, [1, 1], "rows=[gmm-ll]")
    assert set(new_scores(config, plan)) == {"gmm"}
    (job,) = new_scores(config, plan)["gmm"]
    _reference(store, job.inputs["clusters"], "log_likelihood")
    _publish(store, job, [_columns(1, spread=2.0, measure="log_likelihood")])
    assert measure("gmm", [job], store).verdict.exit_code == 3


def test_the_worst_method_decides(tmp_path: Path) -> None:
    config, plan, store = _setup(tmp_path, [1, 1], "rows=[lcs-km, lcs-gmm]")
    found = []
    for method, name, spread in (("gmm", "log_likelihood", 1.0), ("kmeans", "d1", 2.0)):
        (job,) = new_scores(config, plan)[method]
        _reference(store, job.inputs["clusters"], name)
        _publish(store, job, [_columns(1, spread, measure=name)])
        found.append(measure(method, [job], store))
    assert [one.verdict.status for one in found] == ["stable", "re-cluster"]
    assert exit_code(found) == 3


def test_only_generations_after_the_fit_are_new(tmp_path: Path) -> None:
    config, plan, _ = _setup(tmp_path, [1, 1, 1], "pool.cluster_generations=2", "seeds=[3, 4]")
    (job,) = new_scores(config, plan)["kmeans"]
    assert (job.inputs["pool"].params["generation"], job.params["seed"]) == (2, 3)


def test_missing_shards_are_those_without_a_table(tmp_path: Path) -> None:
    config, plan, store = _setup(tmp_path, [3, 2])
    assert missing_shards(plan, store) == 5
    (job,) = new_scores(config, plan)["kmeans"]
    _publish(store, job, [])
    assert missing_shards(plan, store) == 3


@pytest.mark.parametrize(
    ("generations", "more", "expected"),
    [
        ([1], (), "1 generation"),
        ([1, 1], ("pool.cluster_generations=2",), "nothing is newer"),
        ([1, 1], ("rows=[pcs]",), "fit no clusters"),
        ([1, 1], ("pool.source=generate", "pool.path=null"), "pool.source=generate"),
    ],
)
def test_what_cannot_be_compared_is_said(
    tmp_path: Path, generations: list, more: tuple, expected: str
) -> None:
    config, plan, _ = _setup(tmp_path, generations, *more)
    with pytest.raises(UserError, match=expected):
        new_scores(config, plan)


def test_files_at_fault_are_named(tmp_path: Path) -> None:
    config, plan, store = _setup(tmp_path, [1, 1])
    (job,) = new_scores(config, plan)["kmeans"]
    with pytest.raises(UserError, match=f"{DESCRIPTION} has no usable reference"):
        measure("kmeans", [job], store)
    _reference(store, job.inputs["clusters"])
    with pytest.raises(UserError, match="ssat score"):
        measure("kmeans", [job], store)
    columns = _columns(1)
    columns["cluster"][5] = K
    _publish(store, job, [columns])
    with pytest.raises(UserError, match=r"scores-00000.parquet: clusters must be in \[0, 4\)"):
        measure("kmeans", [job], store)


def test_a_missing_score_file_is_no_verdict_on_the_rest(tmp_path: Path) -> None:
    config, plan, store = _setup(tmp_path, [1, 2])
    (job,) = new_scores(config, plan)["kmeans"]
    _reference(store, job.inputs["clusters"])
    _publish(store, job, [_columns(1), _columns(2, spread=2.0)])
    assert measure("kmeans", [job], store).verdict.exit_code == 3
    (store.folder(job) / score_file(2)).unlink()
    with pytest.raises(UserError, match=f"{store.folder(job)}: the score files have 3,000 rows"):
        measure("kmeans", [job], store)


def test_shards_that_all_could_not_be_read_are_no_verdict(tmp_path: Path) -> None:
    config, plan, store = _setup(tmp_path, [1, 1])
    (job,) = new_scores(config, plan)["kmeans"]
    _reference(store, job.inputs["clusters"])
    _publish(store, job, [], quarantined=[{"rows": 10}])
    with pytest.raises(UserError, match="10 images left out"):
        measure("kmeans", [job], store)
