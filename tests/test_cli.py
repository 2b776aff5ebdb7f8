"""The command line: every mistake ends with one paragraph and exit code 2, before Ray starts."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ssat_ray import cli, pipeline, probe
from ssat_ray.errors import RunFailed
from ssat_ray.estimate import Measurements, PerImage, StageCost
from ssat_ray.stages.soundness import masking

SSAT = str(Path(sys.executable).with_name("ssat"))


@dataclass(frozen=True)
class Done:
    """How a command ended, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


Command = Callable[..., Done]


@pytest.fixture
def ssat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Command:
    """`ssat` with these arguments in an empty folder, in this process: most of a start is imports."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["ssat", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        code = ended.value.code or 0
        assert isinstance(code, int)
        return Done(code, *capfd.readouterr())

    return run


def npz(path: Path, images: np.ndarray, labels: np.ndarray) -> str:
    np.savez(path, image=images, label=labels)
    return str(path)


SMALL = ("data.name=npz", "data.num_test=10", "data.num_labelled=10", "data.num_validation=10")


def overrides(*values: str) -> list[str]:
    return [argument for value in values for argument in ("--set", value)]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "digist"], "did you mean 'digits'"),
        (["run", "nowhere.yaml"], "nowhere.yaml does not exist"),
        (
            ["run", "digits", "--set", "select.ratio=0"],
            "select.ratio=0: input should be greater than 0",
        ),
        (["run", "digits", "--set", "select.ratio=1.5"], "select.ratio=1.5"),
        (["run", "digits", "--set", "select.ratoi=0.1"], "did you mean 'select.ratio'"),
        (
            ["run", "digits", "--set", "cluster.k=9999", "--set", "generate.num_images=50"],
            "larger than the pool",
        ),
        (["run", "digits", "--set", "data.name=npz"], "needs data.path"),
        (
            ["run", "digits", *overrides(*SMALL, "data.path=missing.npz")],
            "missing.npz does not exist",
        ),
        (["run", "digits", "--name", "exp/one"], "--name 'exp/one'"),
        (["run", "digits", "--name", ""], "--name ''"),
        (["pretrain", "digits", "--name", ".."], "--name '..'"),
        (["gc", "--store", "nowhere"], "there is no such folder"),
        (["drift", "digits"], "pool.source=generate"),
        (["drift", "digits", "--json", "nowhere/x.json"], "--json nowhere/x.json"),
        (["plan", "digits", "--images", "100", "--price", "1"], "--watts"),
        (["plan", "digits", "--images", "0"], "--images 0: must be at least 1"),
    ],
)
def test_mistakes_are_one_paragraph_and_exit_2(
    arguments: list[str], expected: str, ssat: Command
) -> None:
    done = ssat(*arguments)
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert len(done.stderr.strip().splitlines()) == 1


ONE_PROCESS = """\
import sys
from ssat_ray.cli import main
for arguments in %r:
    sys.argv = ["ssat", *arguments]
    try:
        main()
    except SystemExit as end:
        print(end.code, file=sys.stderr)
print([name for name in ("torch", "ray", "sklearn", "mlflow") if name in sys.modules])
"""


def test_mistakes_in_a_command_are_found_without_slow_imports(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("pool: {source: external, path: nosuch}\n")
    (tmp_path / "file").write_text("")
    cases = {
        "nosuch is no pool": ["select", "mine.yaml"],
        "elsewhere is no pool": ["plan", "mine.yaml", "--set", "pool.path=elsewhere", "--images=9"],
        "mine.yml does not exist": ["drift", "mine.yml"],
        "--json gone/x.json: its folder": ["drift", "mine.yaml", "--json", "gone/x.json"],
        "pool.source=synth: only a pool": ["drift", "scale-100m"],
        "--name 'a/b'": ["run", "digits", "--name", "a/b"],
        "unknown key 'rosw'": ["run", "digits", "--set", "rosw=1"],
        "the store": ["run", "digits", "--set", "runtime.store=file/store"],
        "lost.npz does not exist": ["run", "digits", *overrides(*SMALL, "data.path=lost.npz")],
    }
    code = ONE_PROCESS % list(cases.values())
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "[]\n", done.stderr
    lines = done.stderr.splitlines()
    assert lines[1::2] == ["2"] * len(cases)
    assert [e for e, line in zip(cases, lines[::2], strict=True) if e not in line] == [], lines
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "mine.yaml"]


def test_the_command_that_is_installed(tmp_path: Path) -> None:
    for arguments, code, said in (
        (["--version"], 0, f"ssat_ray {version('ssat_ray')}\n"),
        (["run", "digist"], 2, "did you mean 'digits'"),
    ):
        done = subprocess.run(
            [SSAT, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == code and said in done.stdout + done.stderr


def test_gc_removes_folders_of_runs_that_computed_nothing(ssat: Command, tmp_path: Path) -> None:
    for name in ("failed", "fine"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "run.log").write_text("")
    (tmp_path / "runs" / "fine" / "results.json").write_text("{}")
    (tmp_path / "store").mkdir()
    for path in (tmp_path / "runs").rglob("*"):
        os.utime(path, (0, 0))
    done = ssat("gc", "--dry-run")
    assert done.stdout.startswith("runs/failed\nwould remove 0 artefacts")
    assert (tmp_path / "runs" / "failed").exists()
    assert "1 folders of runs" in ssat("gc").stdout
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["fine"]


def test_bad_files_are_named(ssat: Command, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.random((40, 8, 8, 1)).astype(np.float32)
    labels = np.arange(40) % 4
    broken = images.copy()
    broken[7, 0, 0, 0] = np.nan
    (tmp_path / "text.npz").write_text("no archive")
    cases = {
        npz(tmp_path / "nan.npz", broken, labels): "image 7 has NaN",
        str(tmp_path / "text.npz"): "not a readable npz",
    }
    for path, expected in cases.items():
        done = ssat("run", "digits", *overrides(*SMALL, f"data.path={path}"))
        assert done.returncode == 2, done.stdout
        assert expected in done.stderr
        assert "starting digits-" in done.stdout


def test_unwritable_store(ssat: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = ssat("run", "digits", "--set", f"runtime.store={tmp_path / 'file' / 'store'}")
    assert done.returncode == 2
    assert "cannot be written" in done.stderr


def test_show_prints_the_resolved_tree(ssat: Command) -> None:
    done = ssat("show", "digits", "--set", "select.ratio=0.1")
    tree = yaml.safe_load(done.stdout)
    assert tree["select"]["ratio"] == 0.1
    assert tree["threat"]["eps"] == 0.15
    assert tree["preset"] == "digits"


def test_model_import_errors_come_before_ray(ssat: Command) -> None:
    done = ssat("run", "digits", "--set", "model.name=no_such_module:net")
    assert done.returncode == 2
    assert "no_such_module" in done.stderr


def test_usage_errors_are_shown_and_exit_2(ssat: Command) -> None:
    done = ssat("show", "digits", "--sett", "select.ratio=0.1")
    assert done.returncode == 2
    assert "--sett" in done.stderr and "Usage" in done.stderr


INTERRUPT = """\
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
signal.raise_signal(signal.SIGINT)
"""


def test_an_interrupt_exits_130_and_says_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "interrupt.py").write_text(INTERRUPT)
    done = subprocess.run(
        [SSAT, "run", "digits", "--set", "model.name=interrupt:net"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"},
    )
    assert done.returncode == 130
    assert done.stderr == "ssat: interrupted; run the same command to continue.\n"


def test_a_command_that_is_told_to_end_keeps_its_log_in_a_bucket(s3: Any, tmp_path: Path) -> None:
    """As `ssat stop` and Kubernetes tell it."""
    (tmp_path / "terminate.py").write_text(
        "import signal\nprint('words of a library')\nsignal.raise_signal(signal.SIGTERM)\n"
    )
    bucket = s3.bucket()
    runs = ["--name", "try", *overrides(f"runtime.runs={s3.uri(f'{bucket}/runs')}")]
    done = subprocess.run(
        [SSAT, "run", "digits", *runs, *overrides("model.name=terminate:net")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env={
            **os.environ,
            "SSAT_CACHE": str(tmp_path / "cache"),
            "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}",
        },
    )
    assert done.returncode == 143, done.stderr
    kept = s3.client.get_object(Bucket=bucket, Key="runs/try/run.log")["Body"].read()
    assert b"words of a library" in kept and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (SystemExit(0), 130, "interrupted"),
        (SystemExit(signal.SIGTERM), 143, ""),
        (SystemExit(3), 3, ""),
    ],
)
def test_an_interrupt_within_the_pipeline(
    end: BaseException,
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Ray Train answers SIGINT with SystemExit(0), Ray SIGTERM with its number."""

    def run(*args: object, **kwargs: object) -> None:
        raise end

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "run", run)
    monkeypatch.setattr(sys, "argv", ["ssat", "run", "digits"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == code
    error = capfd.readouterr().err
    assert said in error and bool(said) == bool(error)


SYNTH = StageCost("synth", 5.0, per_image=PerImage(pixels=1e-3))
MEASURED = Measurements(20.0, 10**9, (SYNTH,), (1, 8, 8), 0.0, {})
JSON = ("--set", "runtime.log_format=json")


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(
    ("arguments", "run"),
    [
        (["run", "digits", "--name", "try"], "try"),
        (["plan", "digits", "--images", "9"], "digits-"),
    ],
)
def test_for_programs_a_mistake_is_an_event_and_a_paragraph(
    arguments: list[str], run: str, ssat: Command
) -> None:
    done = ssat(*arguments, *overrides(*SMALL, "data.path=lost.npz"), *JSON)
    (failed,) = events(done.stdout)
    assert done.returncode == failed["exit_code"] == 2 and failed["event"] == "failed"
    assert failed["run"].startswith(run) and done.stderr == f"ssat: {failed['message']}\n"
    assert "lost.npz does not exist" in failed["message"]


def test_for_programs_a_sweeps_mistake_is_an_event_too(ssat: Command, tmp_path: Path) -> None:
    (tmp_path / "runs" / "digits-grid").mkdir(parents=True)
    (tmp_path / "runs" / "digits-grid" / "run.json").write_text("{}")
    done = ssat("sweep", "digits-grid", *JSON)
    (failed,) = events(done.stdout)
    assert (done.returncode, failed["event"], failed["run"]) == (2, "failed", "digits-grid")


def test_for_programs_a_failed_run_is_an_event_after_the_others(
    ssat: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*args: object, **kwargs: object) -> None:
        raise RunFailed("train failed.")

    monkeypatch.setattr(pipeline, "run", run)
    done = ssat("run", "digits", *JSON)
    assert [line["event"] for line in events(done.stdout)] == ["starting", "failed"]
    assert events(done.stdout)[-1]["exit_code"] == done.returncode == 1
    assert events(done.stdout)[-1]["message"].startswith("train failed. Finished stages are kept")


def test_for_programs_a_plan_is_an_event(ssat: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "measure", lambda *args, **kwargs: MEASURED)
    done = ssat("plan", "scale-100m", "--images", "7000", *JSON)
    starting, found = events(done.stdout)
    assert done.returncode == 0 and starting["event"] == "starting"
    assert (found["event"], found["run"], found["result"]["seconds"]) == (
        "estimate",
        "scale-100m",
        32.0,
    )
    assert json.loads(Path(found["file"]).read_text()) == found["result"]


@pytest.mark.parametrize("more", [[], ["--json", "copy.json"]])
def test_a_plan_is_saved_in_the_runs_folder(
    more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(probe, "measure", lambda *args, **kwargs: MEASURED)
    monkeypatch.setattr(sys, "argv", ["ssat", "plan", "scale-100m", "--images", "7000", *more])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 0
    saved = tmp_path / "runs" / "scale-100m" / "plan.json"
    found = json.loads(saved.read_text())
    assert (found["images"], found["seconds"]) == (7000, 32.0)
    assert not more or (tmp_path / "copy.json").read_text() == saved.read_text()


def attacked(autoattack: float) -> dict[str, object]:
    """Results of one row, PGD accuracy 80 %."""
    accuracies = {"clean": 95.0, "pgd": 80.0, "autoattack": autoattack}
    row = {
        "row": "full",
        "seeds": [0],
        "images": {"labelled": 300, "pool": 0},
        "accuracy": {
            attack: {"mean": value, "low": value, "high": value, "name": attack}
            | {"seeds": [0], "by_seed": [value], "signs": [[]]}
            for attack, value in accuracies.items()
        },
        "differences": {},
        "steps": {"total": [500], "hit_max_steps": [False]},
        "seconds": {"total": 1.0},
        "seconds_train": [1.0],
        "seconds_all_recipes": 1.0,
    }
    return {"rows": [row], "warnings": masking([row])}


@pytest.mark.parametrize(
    ("autoattack", "options", "code"),
    [(79.0, [], 0), (80.5, [], 1), (80.5, ["--allow-masking"], 0), (60.0, [], 0)],
)
def test_autoattack_above_pgd_fails_the_run_after_its_table(
    autoattack: float,
    options: list[str],
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Other signs of masked gradients, such as PGD far above AutoAttack, are warnings only."""
    outcome = pipeline.Outcome(tmp_path, attacked(autoattack), 1, 1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "run", lambda *_, **__: outcome)
    monkeypatch.setattr(sys, "argv", ["ssat", "run", "digits", *options])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == code
    shown, error = capfd.readouterr()
    assert f"{autoattack:.1f} [" in shown and "report: " in shown
    assert ("warning: full, seed 0: " in shown) == (autoattack != 79.0)
    assert ("full (seed 0)" in error and "--allow-masking" in error) == bool(code)


def test_select_ends_with_where_the_chosen_images_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With the pipeline itself left out; the run's folder is made once the plan stands."""

    def run(config: object, plan: object, view: object, *, name: str, until: str | None) -> object:
        assert (tmp_path / "runs" / name / "run.log").exists()
        return pipeline.Outcome(tmp_path / "runs" / name, None, computed=3, total=3)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "run", run)
    said = {}
    for verb in ("score", "select"):
        monkeypatch.setattr(
            sys, "argv", ["ssat", verb, "digits", "--set", "rows=[pcs,lcs-km,full]"]
        )
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert not caught.value.code
        said[verb] = capfd.readouterr().out.splitlines()
    assert [len(lines) for lines in said.values()] == [1, 3]
    assert re.fullmatch(r"\[ +\d+ s\] starting digits-[0-9a-f]{8}", said["select"][0])
    for row, line in zip(("pcs", "lcs-km"), said["select"][1:], strict=True):
        assert re.fullmatch(rf"{row} seed 0: {tmp_path}/store/select/[0-9a-f]{{20}}", line)


@pytest.mark.ray
@pytest.mark.slow
def test_a_diverging_run_fails_with_exit_1_and_keeps_the_rest(
    tiny_run: object, tiny_preset: Path, tmp_path: Path
) -> None:
    done = ssat_slow(
        "run", str(tiny_preset), *overrides("train.lr=1e18", "rows=[none,full]"), cwd=tmp_path
    )
    assert done.returncode == 1
    assert "NaN" in done.stderr
    assert "run the same command to continue" in done.stderr
    assert list((tmp_path / "store" / "generate").glob("*/stage.json"))


@pytest.mark.ray
@pytest.mark.slow
def test_a_degenerate_score_is_an_error_that_names_the_method(tmp_path: Path) -> None:
    """A DDPM of one image a class gives a pool of near-identical confidences."""
    (tmp_path / "flat.py").write_text(
        "import torch\n"
        "class Flat(torch.nn.Module):\n"
        "    def __init__(self, channels, classes):\n"
        "        super().__init__()\n"
        "        self.net = torch.nn.Linear(64 * channels, classes)\n"
        "    def forward(self, x):\n"
        "        return self.net(x.flatten(1) * 0)\n"
        "    def embed_with_logits(self, x, layer):\n"
        "        return x.flatten(1), self.forward(x)\n"
    )
    (tmp_path / "flat.yaml").write_text(
        "rows: [pcs, full]\nmodel: {name: 'flat:Flat'}\n"
        "intermediate: {num_steps: 5}\npretrain: {num_steps: 5}\n"
        "generate: {num_images: 200, num_inference_steps: 2, shard_rows: 100}\n"
    )
    done = subprocess.run(
        [SSAT, "select", "flat.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "pcs" in done.stderr
    assert "tie" in done.stderr


def ssat_slow(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SSAT, *args], cwd=cwd, capture_output=True, text=True, timeout=900)
