"""What is checked before anything slow is imported, names of runs, stamped lines."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from ssat_ray.config import Config
from ssat_ray.data.pool import MANIFEST, manifest
from ssat_ray.data.shard import Shard, write_shard
from ssat_ray.errors import RunFailed, UserError
from ssat_ray.loading import load_config
from ssat_ray.start import (
    check_grown,
    check_inputs,
    check_name,
    default_name,
    failures_told,
    stamped,
)

SELECTING = "rows=[none, random, lcs-km, full]"
"""No guided row, which would need a pool that is generated."""


def _pool(folder: Path, rows: int, generations: int = 1) -> Path:
    folder.mkdir()
    images, labels = np.zeros((rows, 8, 8, 1), np.uint8), np.zeros(rows, np.int64)
    entries = [
        [write_shard(folder, g, Shard(np.arange(g * rows, (g + 1) * rows), images, labels))]
        for g in range(generations)
    ]
    (folder / MANIFEST).write_text(manifest(entries, (1, 8, 8), 10))
    return folder


def _config(pool: Path, *overrides: str) -> Config:
    return load_config(
        "digits", [SELECTING, "pool.source=external", f"pool.path={pool}", *overrides]
    )


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["data.name=npz", "data.path=no.npz"], r"data\.path: no\.npz does not exist"),
        (["intermediate.checkpoint=no.pt"], r"intermediate\.checkpoint: no\.pt does not exist"),
        ([SELECTING, "pool.source=external", "pool.path=gone"], r"gone is no pool: it has no"),
    ],
)
def test_missing_inputs_are_named(
    overrides: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=expected):
        check_inputs(load_config("digits", overrides))
    assert not list(tmp_path.iterdir())


def test_a_pool_must_be_large_enough(tmp_path: Path) -> None:
    pool = _pool(tmp_path / "pool", 5)
    check_inputs(_config(pool, "cluster.k=5"))
    with pytest.raises(UserError, match=r"cluster\.k=6 is larger than the pool .*images=5"):
        check_inputs(_config(pool, "cluster.k=6"))


def test_a_pool_has_grown_if_generations_are_newer_than_the_clusters(tmp_path: Path) -> None:
    pool = _pool(tmp_path / "pool", 5, generations=3)
    assert check_grown(_config(pool, "pool.cluster_generations=2")) == 3
    with pytest.raises(UserError, match="nothing is newer than they"):
        check_grown(_config(pool, "pool.cluster_generations=3"))
    with pytest.raises(UserError, match=r"pool\.source=generate"):
        check_grown(load_config("digits"))


def test_a_stamp_has_the_time_since() -> None:
    assert stamped("cluster: 1 to do", time.time() - 75) == "[1 min 15 s] cluster: 1 to do"
    assert stamped("starting", time.time()) == "[    0 s] starting"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("data.path: gone."), 2, "data.path: gone."),
        (RunFailed("train failed"), 1, "train failed"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (SystemExit(143), 143, "told to end"),
        (KeyError("x"), 1, "KeyError: 'x'"),
    ],
)
def test_a_failure_is_an_event_for_programs(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for log_format in ("text", "json"):
        with pytest.raises(type(error)), failures_told(log_format, "try"):
            raise error
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert found.pop("time") == pytest.approx(time.time(), abs=60)
    assert found == {"run": "try", "event": "failed", "exit_code": code, "message": message}


def test_what_does_not_fail_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with failures_told("json", "try"):
        pass
    assert capsys.readouterr().out == ""


def test_default_name_is_the_presets_unless_a_result_changes() -> None:
    config = load_config("digits")
    assert default_name(config) == "digits"
    assert default_name(load_config("digits", ["runtime.store=/elsewhere"])) == "digits"
    first = default_name(load_config("digits", ["select.ratio=0.1"]))
    second = default_name(load_config("digits", ["select.ratio=0.15"]))
    assert first != second and first == default_name(load_config("digits", ["select.ratio=0.1"]))
    prefix, _, digits = first.partition("-")
    assert prefix == "digits" and len(digits) == 8 and int(digits, 16) >= 0
    assert default_name(Config(preset="gone")).startswith("gone-")


@pytest.mark.parametrize(
    "name", ["exp/one", "../one", "..", ".", ".one", "", " ", "a\\b", "/tmp/x"]
)
def test_a_run_name_that_gc_would_not_see_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="--name") as caught:
        check_name(name)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("name", ["results", "first-try", "v1.2", "two words"])
def test_plain_run_names_pass(name: str) -> None:
    assert check_name(name) == name
