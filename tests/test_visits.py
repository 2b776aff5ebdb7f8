"""What the doctor probes on the driver; the visit to nodes is in test_doctor.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ssat_ray.loading import load_config
from ssat_ray.places import place
from ssat_ray.visits import _access, _probes, written


def test_probes_are_written_where_nodes_must_find_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    probes, errors = _probes(load_config("digits", ["runtime.checkpoints=states"]))
    assert {setting: probe.parent for setting, probe in probes.items()} == {
        "runtime.store": tmp_path / "store",
        "runtime.checkpoints": tmp_path / "states",
    }
    assert errors == {} and list((tmp_path / "runs").iterdir()) == []
    for probe in probes.values():
        found = _access(probe)
        assert (found.seen, found.error) == (True, "") and found.speed > 0
        assert list(probe.parent.iterdir()) == [probe]
        assert not _access(probe.with_name("that of another folder")).seen


def test_what_the_driver_cannot_use_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    wrong = ["runtime.checkpoints=file/states", "runtime.runs=file/runs", "pretrain.checkpoint=a b"]
    probes, errors = _probes(load_config("digits", wrong))
    assert list(probes) == ["runtime.store"]
    for setting in ("runtime.checkpoints=file/states", "runtime.runs=file/runs"):
        assert errors[setting].startswith("cannot be written (")
    assert errors["the input"].startswith("pretrain.checkpoint: a b is no folder")


def test_a_bucket(s3: Any) -> None:
    bucket = s3.bucket()
    error, speed = written(place(s3.uri(f"{bucket}/store")))
    assert error == "" and speed > 0 and s3.keys(bucket) == []
    error, speed = written(place(s3.uri("no-such-bucket/store")))
    assert error.startswith("cannot be written (") and speed == 0.0
