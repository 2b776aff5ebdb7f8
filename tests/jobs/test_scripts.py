"""The scripts of `jobs/`: one a verb, the options of `ssat`, from a clone without an installed package."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from ssat_ray import cli

ROOT = Path(__file__).resolve().parents[2]
JOBS = ROOT / "jobs"


@pytest.fixture
def shared() -> ModuleType:
    """`jobs/_ssat.py`, loaded without its folder on the path."""
    spec = importlib.util.spec_from_file_location("_ssat", JOBS / "_ssat.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_scripts_are_the_stages_the_pipeline_and_what_looks_at_it() -> None:
    names = {path.stem for path in JOBS.glob("*.py")} - {"_ssat"}
    assert names == {*cli.STAGE_VERBS, "pipeline", "sweep", "drift", "doctor"}


@pytest.mark.parametrize("installed", [True, False])
def test_the_clone_is_on_the_path_only_if_nothing_is_installed(
    shared: ModuleType, installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec("ssat_ray") if installed else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    monkeypatch.setattr(cli, "main", lambda: None)
    monkeypatch.setattr(sys, "path", [str(JOBS), "/elsewhere"])
    monkeypatch.setattr(sys, "argv", [str(JOBS / "train.py"), "digits", "--name", "a"])
    shared.main("train")
    assert sys.path == (["/elsewhere"] if installed else [str(ROOT), "/elsewhere"])
    assert sys.argv == [str(ROOT / "ssat"), "train", "digits", "--name", "a"]


@pytest.mark.parametrize(
    ("script", "arguments", "code", "said"),
    [
        ("select", ["--help"], 0, "Usage: ssat select"),
        ("pipeline", ["digits", "--set", "select.ratoi=1"], 2, "did you mean 'select.ratio'"),
        ("drift", ["digits"], 2, "pool.source=generate"),
        ("doctor", ["digits", "--set", "actors=1"], 2, "unknown key 'actors'"),
        ("sweep", ["missing.yaml"], 2, "sweep file missing.yaml cannot be read"),
    ],
)
def test_a_script_is_its_verb(
    script: str, arguments: list[str], code: int, said: str, tmp_path: Path
) -> None:
    command = [sys.executable, str(JOBS / f"{script}.py"), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr
    assert said in " ".join((done.stdout + done.stderr).split())


def test_a_process_that_imports_a_script_does_not_run_it() -> None:
    for path in JOBS.glob("*.py"):
        if path.stem != "_ssat":
            assert 'if __name__ == "__main__":\n' in path.read_text()
