"""The options of `ssat export`; what it writes is in test_export.py and test_registration.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssat_ray import cli
from ssat_ray.errors import UserError


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["digits", "--out", "new"], r"runs/digits is no run; there are no runs there"),
        (["digits", "--out", "new", "--runs", "other"], "other/digits is no run"),
        (["sweep/digits", "--out", "new"], "runs/sweep/digits is no run; there are no runs there"),
        (["../digits", "--out", "new"], r"SWEEP '\.\.': it must be a plain file name"),
        (["a/b/digits", "--out", "new"], "SWEEP 'a/b': it must be a plain file name"),
        (["sweep/", "--out", "new"], "RUN '': it must be a plain file name"),
        (["sweep/trial", "--out", "new.yaml"], "runs/sweep/trial is no run"),
        (["digits", "--out", "full/file.yml"], "--out full/file.yml exists; give another name"),
        (
            ["digits", "--out", "a.yaml", "--seed", "0"],
            "--seed is of a classifier, and --out a.yaml",
        ),
        (["digits", "--out", "full"], "--out full is not empty"),
        (["digits", "--out", "full", "--force"], "is no run"),
    ],
)
def test_mistakes(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    (tmp_path / "full" / "file.yml").write_text("")
    with pytest.raises(UserError, match=said):
        cli.app(["export", *arguments], standalone_mode=False)
    assert not (tmp_path / "new").exists() and not list(tmp_path.glob("*.yaml"))
