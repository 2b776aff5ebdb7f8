"""`ssat compare` as a person calls it, on results that were written by hand, without Ray."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ssat_ray import cli
from ssat_ray.errors import UserError


def row(name: str, *pgd: float, seconds: float, pool: int) -> dict[str, Any]:
    seeds = list(range(len(pgd)))
    entry = {"mean": sum(pgd) / len(pgd), "by_seed": list(pgd), "seeds": seeds, "name": "PGD-40"}
    return {
        "row": name,
        "seeds": seeds,
        "images": {"labelled": 300, "pool": pool},
        "accuracy": {"pgd": entry},
        "seconds": {"train": seconds, "total": seconds},
        "steps": {"hit_max_steps": [False for _ in seeds]},
        "peak_memory_bytes": {"max": 2**30},
    }


def write_results(folder: Path, **config: Any) -> Path:
    folder.mkdir(parents=True)
    content = {
        "config": {"select": {"ratio": 0.2, **config}},
        "machine": {"cpu": "EPYC"},
        "rows": [
            row("random", 80.0, 80.4, 79.9, seconds=100.0, pool=2000),
            row("pcs", 81.1, 81.2, 81.0, seconds=120.0, pool=2000),
        ],
        "stages": [{"digest": "a", "label": "train", "seconds": 100.0, "startup_seconds": 1.0}],
        "warnings": [],
    }
    (folder / "results.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_results(tmp_path / "runs" / "one")
    return tmp_path


def compare(*arguments: str) -> None:
    cli.app(["compare", *arguments], standalone_mode=False)


def test_one_run_has_its_page_in_its_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare("one", "--json", "found.json", "--watts", "100", "--price", "0.5", "--by", "images")
    said = capsys.readouterr().out
    assert "pcs is the only candidate, at 81.1 % PGD-40 accuracy." in said
    assert "page: runs/one/compare.html" in said
    page = (here / "runs" / "one" / "compare.html").read_text()
    assert page.startswith("<!doctype html>") and "pcs is the only candidate" in page
    found = json.loads((here / "found.json").read_text())
    assert found["sources"] == ["one"] and found["by"] == "images"
    pcs = next(entry for entry in found["outcomes"] if entry["row"] == "pcs")
    assert pcs["differences"]["random"]["mean"] == pytest.approx(1.0)
    assert pcs["cost"] == pytest.approx(0.5 * 100 * 120 / 3.6e6)
    assert found["spent"]["seconds"] == 101.0


def test_several_have_theirs_here_or_where_it_is_wanted(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_results(here / "elsewhere" / "two", boundary_fraction=0.3)
    compare("one", "elsewhere/two", "one")
    assert (here / "compare.html").is_file()
    compare("one", "--out", "elsewhere/page.html")
    assert (here / "elsewhere" / "page.html").is_file()
    assert "elsewhere/page.html" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none"], r"none is no finished run and no sweep.*those in runs are one"),
        (["one", "--price", "1"], "--price is of a kWh, so it needs --watts"),
        (["one", "--json", "no/folder.json"], "--json no/folder.json: its folder does not exist"),
        (["one", "--out", "no/page.html"], "--out no/page.html: its folder does not exist"),
        (["one", "--out", "runs"], "runs cannot be written"),
        (["one", "--attack", "autoattack"], "measured are pgd"),
        (["sqlite:///no.db"], "MLflow cannot be read .*no.db does not exist"),
    ],
)
def test_mistakes(arguments: list[str], said: str, here: Path) -> None:
    before = sorted(here.rglob("*"))
    with pytest.raises(UserError, match=said):
        compare(*arguments)
    assert sorted(here.rglob("*")) == before


def test_it_imports_neither_ray_nor_torch(here: Path) -> None:
    code = (
        "import sys\nfrom ssat_ray import cli\n"
        "cli.app(['compare', 'one'], standalone_mode=False)\n"
        "assert not {'ray', 'torch', 'mlflow'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
