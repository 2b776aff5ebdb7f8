"""`ssat sweep`: mistakes end with one paragraph and exit code 2, before torch and Ray are imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ssat_ray import cli
from ssat_ray.errors import UserError

GRID = "{preset: digits, row: pcs, space: {select.ratio: [0.1, 0.2]}}"


def sweep(*arguments: str) -> None:
    cli.app(["sweep", *arguments], standalone_mode=False)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "grid.yaml").write_text(GRID)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["gird.yaml"], r"sweep file gird\.yaml cannot be read"),
        (["grid.yaml", "--name", "a/b"], "--name 'a/b'"),
        (["grid.yaml", "--set", "select.ratio=0.3"], "--set: select.ratio is in space"),
        (["grid.yaml", "--set", "train.lrr=0.3"], "did you mean 'train.lr'"),
        (["grid.yaml", "--set", "train.lr=-1"], "train.lr=-1"),
        (
            ["grid.yaml", "--set", "runtime.runs='s3://b/runs'"],
            "s3://b/runs: .* must be in a folder",
        ),
        (["grid.yaml", "--set", "data.path=x.npz", "--set", "data.name=npz"], "x.npz does not ex"),
    ],
)
def test_mistakes_start_nothing(arguments: list[str], said: str, here: Path) -> None:
    with pytest.raises(UserError, match=said):
        sweep(*arguments)
    assert [path.name for path in here.iterdir()] == ["grid.yaml"]


def test_a_run_keeps_its_name(here: Path) -> None:
    (here / "runs/grid").mkdir(parents=True)
    (here / "runs/grid/run.json").write_text("{}")
    with pytest.raises(UserError, match="is a run, so no sweep can have its name"):
        sweep("grid.yaml")


def test_a_mistake_takes_no_slow_import(here: Path) -> None:
    code = (
        "import sys\nfrom ssat_ray.cli import app\n"
        "try:\n    app(['sweep', 'gird.yaml'], standalone_mode=False)\n"
        "except Exception as error:\n    print(type(error).__name__)\n"
        "print([name for name in ('torch', 'ray', 'mlflow', 'optuna') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=here)
    assert done.stdout.splitlines() == ["UserError", "[]"], done.stderr
