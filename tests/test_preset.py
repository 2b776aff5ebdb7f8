"""A run's configuration as a preset: `ssat run` of the file asks for the same artefacts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ssat_ray import cli, pipeline
from ssat_ray.config import Config
from ssat_ray.errors import UserError
from ssat_ray.loading import load_config, preset_names
from ssat_ray.plan import build_plan
from ssat_ray.preset import preset_text, write_preset

RUNTIME = {"runtime", "preset"}


def write_run(folder: Path, config: Config) -> dict[tuple[str, int, str], str]:
    """A folder as `ssat run` leaves it; returns the digests."""
    plan = build_plan(config)
    pipeline.write_run(config, plan, folder)
    return {place: job.digest for place, job in plan.jobs.items()}


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["cluster.k=20", "select.ratio=0.05", "seeds=[0,1]", "rows=[lcs-km,random,full]"],
        ["train.none_recipes={a: {lr: 1.0e-3}}", "pretrain.lr=2e-4", "cluster.pca_dims=null"],
        ["runtime.train_workers=[1,1]", "train.batch_size=64", "train.bn_group=64"],
    ],
)
def test_the_same_digests(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config("digits", overrides)
    digests = write_run(tmp_path / "runs" / "sweep" / "trial", config)
    cli.app(["export", "sweep/trial", "--out", "mine.yaml"], standalone_mode=False)
    again = load_config("mine.yaml")
    assert {place: job.digest for place, job in build_plan(again).jobs.items()} == digests
    assert again.model_dump(exclude=RUNTIME) == config.model_dump(exclude=RUNTIME)
    assert again.runtime.train_workers == config.runtime.train_workers
    assert "sweep/trial (preset digits)" in (tmp_path / "mine.yaml").read_text().splitlines()[0]


def test_a_file_of_the_presets_name_has_the_reports_digest_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config("digits", ["select.ratio=0.05"])
    write_run(tmp_path / "runs" / "one", config)
    write_preset("one", Path("runs"), Path("digits.yaml"))
    first, second = build_plan(config).report, build_plan(load_config("digits.yaml")).report
    assert first is not None and second is not None and first.digest == second.digest


def test_nothing_of_this_machine_is_in_it(tmp_path: Path) -> None:
    config = load_config("digits", ["runtime.store=/mine/store", "runtime.actors=7"])
    text = preset_text(json.loads(config.model_dump_json()), "one")
    assert "/mine" not in text and "actors" not in text and "runtime" not in text


PRESETS = [name for name in preset_names() if name in ("digits", "scale-100m")]


@given(
    st.sampled_from(PRESETS),
    st.integers(2, 50),
    st.floats(0.01, 1.0),
    st.floats(1e-6, 10.0),
    st.lists(st.integers(0, 10**6), min_size=1, max_size=3, unique=True),
)
def test_every_value_survives(
    preset: str, k: int, ratio: float, lr: float, seeds: list[int]
) -> None:
    settings = [f"cluster.k={k}", f"select.ratio={ratio}", f"train.lr={lr!r}", f"seeds={seeds}"]
    config = load_config(preset, settings)
    tree: Any = yaml.safe_load(preset_text(json.loads(config.model_dump_json()), "one"))
    again = Config.model_validate({**tree, "preset": preset})
    assert again.model_dump(exclude={"runtime"}) == config.model_dump(exclude={"runtime"})


def test_mistakes(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    write_run(runs / "sweep" / "trial", load_config("digits"))
    out = tmp_path / "mine.yaml"
    with pytest.raises(UserError, match=r"is no run \(did you mean 'sweep/trial'\?\)"):
        write_preset("sweep/trail", runs, out)
    write_preset("sweep/trial", runs, out)
    with pytest.raises(UserError, match="exists; give another name, or --force"):
        write_preset("sweep/trial", runs, out)
    write_preset("sweep/trial", runs, out, force=True)
    with pytest.raises(UserError, match="cannot be written"):
        write_preset("sweep/trial", runs, out / "below.yaml")
    path = runs / "sweep" / "trial" / "run.json"
    content = json.loads(path.read_text())
    content["config"]["select"]["ratios"] = 1
    path.write_text(json.dumps(content))
    (runs / "odd").mkdir()
    (runs / "odd" / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"odd/run\.json is damaged"):
        write_preset("odd", runs, tmp_path / "odd.yaml")
    with pytest.raises(UserError, match=r"unknown key 'select\.ratios'"):
        write_preset("sweep/trial", runs, out, force=True)
