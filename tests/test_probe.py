"""`ssat plan`: the sizes it measures, and one tiny run of the command."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssat_ray.config import TrainConfig
from ssat_ray.loading import load_config
from ssat_ray.plan import build_plan
from ssat_ray.probe import (
    MOST_IMAGES,
    extra_jobs,
    flops_ratio,
    follow,
    load_warning,
    probe_config,
    sizes,
)
from ssat_ray.training.schedule import rule_of

SSAT = str(Path(sys.executable).with_name("ssat"))


@settings(deadline=None)
@given(
    images=st.integers(1, 10**9),
    rate=st.floats(1, 1e6),
    seconds=st.floats(1, 600),
    actors=st.integers(1, 16),
)
def test_at_most_a_million_images_are_measured(images, rate, seconds, actors) -> None:
    config = load_config("scale-100m", [f"runtime.actors={actors}"])
    size = sizes(config, images, rate, seconds, [1, 8, 8])
    assert size.warm + size.small + size.main <= MOST_IMAGES
    assert size.sample <= size.refined <= size.main
    assert size.warm < size.small < size.main
    for pool in (size.warm, size.small, size.main):
        probe = probe_config(config, size, pool)
        parts = -(-pool // probe.synth.shard_rows)
        assert parts >= actors or pool < actors**2


def test_rows_that_select_nothing_are_left_out() -> None:
    config = load_config("digits", ["rows=[none,random,lcg-km,full]"])
    probe = probe_config(config, sizes(config, 10_000, 1e3, 60, [1, 8, 8]), 5_000)
    assert probe.rows == ("random",) and probe.pool.source == "synth"


def test_a_fast_model_is_measured_on_shards_of_one_size_and_the_targets_share() -> None:
    config = load_config("scale-100m")
    size = sizes(config, 10**8, rate=80_000, seconds=60, shape=[1, 8, 8])
    assert size.main == pytest.approx(2 * size.small, abs=1)
    assert size.sample == config.cluster.sample_rows == size.refined  # 5 % would be less
    rows = {probe_config(config, size, n).synth.shard_rows for n in (size.small, size.main)}
    assert rows == {-(-size.main // 4)}


def test_a_slow_model_is_measured_on_few_images() -> None:
    size = sizes(load_config("scale-100m"), 10**8, rate=100, seconds=60, shape=[3, 224, 224])
    assert size.main == 3000


def test_flops_grow_with_the_pixels() -> None:
    config = load_config("scale-100m")
    assert flops_ratio(config, (1, 8, 8), 8) == 1
    assert flops_ratio(config, (1, 8, 8), 32) == pytest.approx(16, rel=0.01)


@pytest.mark.parametrize(
    ("load", "ours", "warns"), [(2.0, 0, False), (2.1, 0, True), (3.9, 4, False), (4.1, 4, True)]
)
def test_others_on_the_machine_are_warned_of(load: float, ours: int, warns: bool) -> None:
    text = load_warning(load, cores=2, ours=ours)
    assert (text is not None) == warns
    if text is not None:
        assert f"load is {load} on 2 cores" in text and "too long" in text


def test_every_pool_is_scored_by_the_main_ones_clusters() -> None:
    config = load_config("scale-100m", ["rows=[lcs-km, gmm-ll, random, pcs]"])
    size = sizes(config, 10**8, rate=80_000, seconds=60, shape=[1, 8, 8])
    main, small = (
        build_plan(probe_config(config, size, n)).unique for n in (size.main, size.small)
    )
    fitted = {job.digest for job in main if job.stage == "cluster"}
    followed = follow(small, main)
    assert {job.digest for job in followed if job.stage == "cluster"} == fitted
    scores = [job for job in followed if job.stage == "score"]
    assert {j.inputs["clusters"].digest for j in scores if "clusters" in j.inputs} == fitted
    assert not {job.digest for job in scores} & {job.digest for job in main}
    chosen = next(job for job in followed if job.stage == "select" and "score" in job.inputs)
    assert chosen.inputs["score"].digest in {job.digest for job in scores}


def test_a_comparison_on_a_generated_pool_needs_more_jobs() -> None:
    size = sizes(load_config("digits"), 10**6, rate=80_000, seconds=60, shape=[1, 8, 8])
    stages = [job.stage for job in extra_jobs(load_config("digits"), size)]
    assert sorted(set(stages)) == ["generate", "labelled", "pretrain", "train"]
    assert extra_jobs(load_config("scale-100m"), size) == []


def test_the_probe_of_a_long_schedule_takes_a_few_steps() -> None:
    config = load_config("digits", ["train.schedule=onecycle", "train.num_epochs=400"])
    size = sizes(config, 10**6, rate=80_000, seconds=60, shape=[1, 8, 8])
    (job,) = (job for job in extra_jobs(config, size) if job.stage == "train")
    assert rule_of(TrainConfig(**job.config["train"]), 300).expected_steps == 25


@pytest.mark.ray
@pytest.mark.slow
def test_the_command_estimates_every_stage(tmp_path: Path) -> None:
    settings = ["runtime.train_workers=1", "intermediate.num_steps=20", "cluster.sample_rows=2000"]
    settings += ["model.widths=[8, 16]", "cluster.refine_rows=4000", "cluster.restarts=2"]
    overrides = [argument for one in settings for argument in ("--set", one)]
    command = [SSAT, "plan", "scale-100m", "--images", "20000", "--seconds", "1"]
    command += [*overrides, "--watts", "100", "--price", "0.3", "--json", "plan.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bottleneck" in done.stdout and "kWh" in done.stdout
    assert re.search(r"^\[ +\d+ (s|min.*)\] measuring cluster$", done.stdout, re.MULTILINE)
    found = json.loads((tmp_path / "plan.json").read_text())
    stages = [stage["stage"] for stage in found["stages"]]
    assert stages == ["labelled", "intermediate", "synth", "cluster", "score", "select"]
    assert all(stage["seconds"] + stage["start_seconds"] > 0 for stage in found["stages"])
    assert 20_000 * 20 < found["disk_bytes"] < 20_000 * 200
    assert found["peak_bytes"] > 300 * 2**20
    assert min(found["measured"]["rates"].values()) > 0
    assert not list(tmp_path.glob("runs/.plan-*"))
    assert json.loads((tmp_path / "runs/scale-100m/plan.json").read_text()) == found
