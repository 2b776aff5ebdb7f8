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
        (["runs/digits", "--out", "new"], r"RUN 'runs/digits': it must be a plain file name"),
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
    with pytest.raises(UserError, match=said):
        cli.app(["export", *arguments], standalone_mode=False)
    assert not (tmp_path / "new").exists()
