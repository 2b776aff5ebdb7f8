"""What a person sees: plain lines, the status line, the results table, and quiet output."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

from ssat_ray.loading import load_config
from ssat_ray.pipeline import Outcome
from ssat_ray.plan import build_plan
from ssat_ray.stages.quality import QUALITY
from ssat_ray.store import Store
from ssat_ray.tables import guided_rows, quality_lines, results_table, selection_lines
from ssat_ray.view import Ends, JsonLines, View, _status, follower, quiet_output


def test_plain_lines_name_stage_and_jobs() -> None:
    out = io.StringIO()
    view = View(Console(file=out, width=200), since=time.time() - 75)
    plan = build_plan(load_config("digits"))
    jobs = [job for job in plan.unique if job.stage == "select"]
    view.planned(plan.unique, jobs)
    view.connecting()
    view.stage_started("select", jobs)
    view.stage_finished("select", jobs, 61.0)
    view.waiting(jobs[0])
    view.waiting(jobs[0])
    view.close()
    lines = out.getvalue().splitlines()
    assert len(lines) == 4
    assert re.fullmatch(r"\[1 min 1[5-9] s\] starting Ray", lines[0])
    assert "select: 5 to do (random seed 0" in lines[1]
    assert "select: done in 1 min 01 s" in lines[2]
    assert "another process" in lines[3]


def test_the_chosen_images_are_a_line_a_row_and_seed(tmp_path: Path) -> None:
    plan = build_plan(load_config("digits", ["rows=[none,pcs,lcs-km,full]", "seeds=[0,3]"]))
    lines = selection_lines(plan, Store(tmp_path))
    assert [line.partition(": ")[0] for line in lines] == [
        f"{row} seed {seed}" for seed in (0, 3) for row in ("pcs", "lcs-km")
    ]
    digest = plan.jobs["lcs-km", 3, "select"].digest
    assert lines[-1] == f"lcs-km seed 3: {tmp_path}/select/{digest}"


def judged(tmp_path: Path) -> Ends:
    """What `ssat quality` ends with for two seeds, whose figures are invented."""
    plan = build_plan(load_config("digits", ["rows=[none,lcg-km]", "seeds=[0,3]"]))
    store = Store(tmp_path)
    for seed, near in {0: 0.4, 3: 0.5}.items():
        folder = store.folder(plan.jobs["lcg-km", seed, "quality"])
        folder.mkdir(parents=True)
        sets = {
            name: {"agreement": 0.96, "coverage": 0.7, "density": 1.1, "confidence": 0.94, "frechet": value, "score": {"0.5": value}}
            for name, value in {"base": 2.5, "guided": 2.0, "real": 3.0}.items()
        }  # fmt: skip
        nearest = {"guided": {"0.5": 2.25}, "base": {"0.5": 2.5}}
        seen = {"near": near, "median_ratio": 0.8, **sets}
        found = {"guide": seen, "judge": seen, "nearest_training_image": nearest}
        (folder / QUALITY).write_text(json.dumps(found))
    return Ends(quality=quality_lines(plan, store), guided=guided_rows(plan, store))


def test_guided_images_are_a_table_and_where_their_figures_are(tmp_path: Path) -> None:
    out = io.StringIO()
    View(Console(file=out, width=140)).finished(Outcome(tmp_path, None, 3, 9), judged(tmp_path))
    heads, guide, judge, *rest = out.getvalue().splitlines()
    assert heads.split()[:4] == ["row", "by", "near", "%"] and heads.split()[-1] == "nearest"
    figures = (
        "45.0 0.80 1.20 96.0 [96.0] 0.700 [0.700] 1.10 [1.10] 0.940 [0.940] 2 [2.5] 2.250 [2.500]"
    )
    assert guide.split() == ["lcg-km", "guide", *figures.split()]
    assert judge.split() == ["lcg-km", "judge", *figures.split()]
    assert [line.partition(": ")[0] for line in rest[-2:]] == ["lcg-km seed 0", "lcg-km seed 3"]
    assert all(Path(line.partition(": ")[2]).is_file() for line in rest[-2:])


def test_guided_images_are_in_the_json_lines_too(tmp_path: Path) -> None:
    out = io.StringIO()
    JsonLines(out, "try").finished(Outcome(tmp_path, None, 3, 9), judged(tmp_path))
    (line,) = map(json.loads, out.getvalue().splitlines())
    assert [(one["row"], one["judge"], one["near"]) for one in line["guided"]] == [
        ("lcg-km", "guide", 0.45),
        ("lcg-km", "judge", 0.45),
    ]
    first = line["guided"][0]
    assert (first["density"], first["base_agreement"], first["nearest"]) == (1.1, 0.96, 2.25)
    assert len(line["quality"]) == 2 and line["quality"][0].endswith(QUALITY)


def test_the_stage_table_has_the_wanted_stages_only() -> None:
    """`ssat generate` says nothing of stages after `generate`."""
    view = View(Console(file=io.StringIO(), width=200))
    plan = build_plan(load_config("digits", ["rows=[random, full]"]))
    wanted = [job for job in plan.unique if job.stage in ("labelled", "pretrain", "generate")]
    view.planned(wanted, wanted[1:])
    assert list(view.stages) == ["labelled", "pretrain", "generate"]
    assert [s["todo"] for s in view.stages.values()] == [0, 1, 1]


def test_json_lines_say_what_happened_to_which_run_and_stage() -> None:
    out = io.StringIO()
    config = load_config("digits", ["rows=[random, full]", "runtime.log_format=json"])
    lines = follower(config, out, "try", since=0.0)
    assert isinstance(lines, JsonLines)
    jobs = build_plan(config).unique
    pretrain = [job for job in jobs if job.stage == "pretrain"]
    lines.planned(jobs, pretrain)
    lines.stage_started("pretrain", pretrain)
    entry = {"done": 3.0, "total": 9.0, "unit": "steps", "note": "loss 1", "since": 0.0}
    lines._show({"pretrain seed 0": entry, "train full seed 0": entry})
    lines.stage_finished("pretrain", pretrain, 1.23456)
    lines._show({"pretrain seed 0": entry})
    lines.waiting(jobs[0])
    lines.waiting(jobs[0])
    lines.finished(Outcome(Path("runs/try"), {"warnings": ["w"]}, 1, 5), Ends(["kept"]))
    said = [json.loads(line) for line in out.getvalue().splitlines()]
    assert all(
        abs(line.pop("time") - time.time()) < 60 and line.pop("run") == "try" for line in said
    )
    stage = {"stage": "pretrain"}
    assert said == [
        {"event": "planned", "artefacts": len(jobs), "missing": 1},
        {"event": "stage_started", **stage, "jobs": ["pretrain seed 0"]},
        {"event": "progress", **stage, "job": "pretrain seed 0", "done": 3.0, "total": 9.0, "unit": "steps", "note": "loss 1"},
        {"event": "stage_finished", **stage, "jobs": 1, "seconds": 1.235},
        {"event": "waiting", "stage": "labelled", "job": "labelled"},
        {"event": "finished", "computed": 1, "artefacts": 5, "report": "runs/try/report.html", "warnings": ["w"], "selection": ["kept"], "guided": [], "quality": []},
    ]  # fmt: skip


def test_status_has_rate_and_time_left() -> None:
    entry = {
        "since": time.time() - 10,
        "first": 0,
        "done": 100,
        "total": 300,
        "unit": "steps",
        "note": "x",
    }
    text = _status("train full", entry)
    assert "100/300 steps" in text
    assert "10.0/s" in text
    assert "left 20 s" in text


def test_quiet_output_catches_children_too(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from ssat_ray.view import quiet_output\n"
        "with quiet_output(Path('log')) as screen:\n"
        "    os.system('echo noise'); print('more noise'); print('seen', file=screen)\n"
        "print('after')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.split() == ["seen", "after"]
    assert "noise" in (tmp_path / "log").read_text()
    assert os.path.getsize(tmp_path / "log") > 0
    assert callable(quiet_output)


def test_a_terminal_that_lacks_a_character_ends_no_run(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path\n"
        "from ssat_ray.view import quiet_output\n"
        "with quiet_output(Path('log')) as screen:\n"
        "    print('\\u2265 500', file=screen)\n"
    )
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, env=os.environ | ascii_only)
    assert done.stdout.split() == [b"?", b"500"]


def test_results_table_shows_intervals() -> None:
    entry = {"mean": 83.21, "low": 80.0, "high": 86.0, "name": "PGD-40"}
    row = {
        "row": "lcs-km",
        "seeds": [0],
        "images": {"labelled": 300, "pool": 2000},
        "accuracy": {"clean": {**entry, "name": "clean"}, "pgd": entry},
        "differences": {"random": {"mean": -0.4, "low": -1.5, "high": 0.7}},
        "steps": {"total": [500], "hit_max_steps": [True]},
        "seconds": {"total": 321.0},
        "seconds_train": [40.0],
        "seconds_all_recipes": 70.0,
    }
    out = io.StringIO()
    Console(file=out, width=200).print(results_table({"rows": [row]}))
    text = out.getvalue()
    for expected in ("PGD-40 %", "83.2 [80.0, 86.0]", "-0.4 [-1.5, +0.7]", "2,300", "321"):
        assert expected in text
    assert "≥ 500 (limit)" in text
    assert "Choosing lcs-km's recipe took 30 s more" in text


def test_the_results_table_fits_a_line_a_row() -> None:
    entry = {"mean": 83.21, "low": 80.0, "high": 86.0, "name": "AutoAttack"}
    row = {
        "row": "lcs-gmm",
        "seeds": [0, 1, 2],
        "images": {"labelled": 300, "pool": 10000},
        "accuracy": dict.fromkeys(("clean", "pgd", "apgd-ce", "autoattack"), entry),
        "differences": {"random": {"mean": -0.4, "low": -1.5, "high": 0.7}},
        "steps": {"total": [1250, 1250, 1200], "hit_max_steps": [True, True, False]},
        "seconds": {"total": 321.0},
        "seconds_train": [40.0],
        "seconds_all_recipes": 40.0,
    }
    out = io.StringIO()
    Console(file=out, width=140).print(results_table({"rows": [row]}))
    line = out.getvalue().splitlines()[1]
    assert line.endswith("≥ 1,233 (limit 2/3)      321")
