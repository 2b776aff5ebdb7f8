"""`ssat bench`: the table it prints, and its mistakes."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ssat_ray.bench.measure import Comparison
from ssat_ray.bench_cli import BENCHES, GROUPS, guidance, table
from ssat_ray.errors import UserError

SSAT = str(Path(sys.executable).with_name("ssat"))


def test_the_table_names_command_machine_and_commit() -> None:
    found = [Comparison("100 scores", [1.0], [2.0])]
    assert "`ssat bench select --rows 100`" in table("select", {"rows": 100}, found)
    text = table("select", {}, found)
    assert "`ssat bench select`" in text and "commit" in text and "cores" in text
    assert "| 100 scores | 1 (1-1) | 2 (2-2) | 2.00 |" in text


def test_a_small_bench_prints_and_appends(tmp_path: Path) -> None:
    out = tmp_path / "page.md"
    command = [SSAT, "bench", "select", "--rows", "20000", "--repeats", "1", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert out.read_text().strip() == done.stdout.strip()
    assert "`ssat bench select --rows 20000 --repeats 1`" in done.stdout
    rows = [line for line in done.stdout.splitlines() if line.startswith("| 20,000 scores")]
    assert len(rows) == 3
    for row in rows:  # Python with NumPy and PyArrow, and no torch, on either side
        peaks = re.search(r"peak GiB ([\d.]+), bare ([\d.]+)", row)
        assert peaks is not None and all(0.03 < float(peak) < 0.4 for peak in peaks.groups())


@pytest.mark.parametrize(
    ("name", "rows", "expected"),
    [("kmeans", "0", "--rows 0: must be at least 1"), ("ddp", "9", "bench ddp has no such size")],
)
def test_a_bad_number_is_a_user_error(name: str, rows: str, expected: str) -> None:
    command = [SSAT, "bench", name, "--rows", rows]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and expected in done.stderr


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"row": ["pcg", "pcs"]}, "--row pcs: expected one of pcg"),
        ({"weight": [0.1, -1.0]}, "--weight -1: must be at least 0"),
        ({"sampling": [3.0, 0.0]}, "--sampling 0: must be above 0"),
        ({"overrides": ["generate.guidance=3"]}, "--set generate.guidance=3: use --weight"),
        ({"overrides": ["seeds=[5]"]}, "--set seeds=.*use"),
    ],
)
def test_a_curve_of_something_else_is_a_user_error(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        guidance(**options)


def test_lambda_can_be_chosen_on_other_seeds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ssat_ray.bench import guidance as curve

    def found(
        weights: tuple,
        sampling: tuple,
        seeds: tuple,
        rows: tuple,
        overrides: tuple,
        folder: Path | None,
    ) -> list[curve.Point]:
        assert overrides == ("finetune.anchor=0.1",) and sampling == ()
        of = {
            name: {"agreement": 0.9, "coverage": 0.5, "confidence": 0.7}
            for name in ("base", "guided")
        }
        seen = {"near": 0.5, "median_ratio": 0.8, **of}
        reports = {seed: dict.fromkeys(curve.JUDGES, seen) for seed in seeds}
        return [
            curve.Point.of(row, "fine-tuning", "judge", w, reports) for row in rows for w in weights
        ]

    monkeypatch.setattr(curve, "run", found)
    guidance(weight=[0.25], row=["pcg"], seed=[7, 9], overrides=["finetune.anchor=0.1"])
    shown = capsys.readouterr().out
    command = (
        "ssat bench guidance --weight 0.25 --row pcg --seed 7 --seed 9 --set finetune.anchor=0.1"
    )
    assert f"`{command}`" in shown
    assert (
        "over the seeds 7, 9)" in shown and "The values of the seeds 7, 9, in this order:" in shown
    )
    lines = [
        line
        for line in shown.splitlines()
        if line.startswith("| `pcg` | fine-tuning | judge | 0.25 |")
    ]
    assert len(lines) == 2 and "| 50.0, 50.0 |" in lines[1]


def test_a_page_that_cannot_be_written_is_said_before_anything_is_measured(tmp_path: Path) -> None:
    for option in ("--out", "--figure"):
        command = [SSAT, "bench", "guidance", option, str(tmp_path / "none" / "page.md")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 2 and "page.md cannot be written" in done.stderr


def test_a_seed_that_cannot_be_is_a_usage_error() -> None:
    command = [SSAT, "bench", "guidance", "--seed", "7", "--seed", "-1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "--seed" in done.stderr and "or equal to 0" in done.stderr


def test_the_groups_hold_every_bench_once() -> None:
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(BENCHES)


@pytest.mark.parametrize("name", BENCHES)
def test_a_bench_is_a_median_of_five_by_default(name: str) -> None:
    run = importlib.import_module(f"ssat_ray.bench.{name}").run
    assert inspect.signature(run).parameters["repeats"].default == 5


def test_the_step_on_a_device_needs_neither_ray_nor_faiss_nor_diffusers() -> None:
    """A bare GPU box: here it gets as far as asking PyTorch for the device."""
    code = (
        "import sys\n"
        "for name in ('ray', 'faiss', 'diffusers', 'mlflow', 'pyautoattack', 'sklearn'):\n"
        "    sys.modules[name] = None\n"
        "sys.argv = ['ssat', 'bench', 'step', '--device', 'nonsense']\n"
        "from ssat_ray.cli import main\n"
        "import ssat_ray.bench.gpu\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "--device nonsense: PyTorch has no such device here" in done.stderr
