"""The arithmetic of `ssat plan`: starts once, slopes by image, scaling by pixels, FLOPs and GPUs."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssat_ray.estimate import Measurements, PerImage, StageCost, Target, energy, estimate

MIB = 2**20
POOL = StageCost(
    "synth", 5.0, per_image=PerImage(pixels=1e-6), disk_per_image=PerImage(pixels=60.0)
)
CLUSTER = StageCost(
    "cluster",
    once=0.0,
    per_seed=30.0,
    per_image=PerImage(pixels=2e-6),
    per_refined=PerImage(flops=5e-6, other=1e-6),
    session_bytes=2000 * MIB,
    images=1_000_000,
    refined=500_000,
    bytes_per_refined=256.0,
    actor_bytes=700 * MIB,
    actors=2,
    scratch_per_refined=300.0,
)
SCORE = StageCost(
    "score",
    10.0,
    per_image=PerImage(pixels=2e-6, flops=8e-6),
    session_bytes=3000 * MIB,
    disk_per_image=PerImage(other=25.0),
)
SELECT = StageCost(
    "select",
    once=0.0,
    per_seed=2.0,
    per_image=PerImage(pixels=2e-6),
    session_bytes=1500 * MIB,
    images=1_000_000,
    bytes_per_image=8.0,
)
MEASURED = Measurements(20.0, 800 * MIB, (POOL, CLUSTER, SCORE, SELECT), (1, 8, 8), 0.0, {})


def _stage(found, name: str):
    return next(one for one in found.stages if one.stage == name)


def test_seconds_are_starts_and_slopes() -> None:
    found = estimate(MEASURED, Target(100_000_000, refine_rows=5_000_000))
    assert _stage(found, "cluster").seconds == pytest.approx(30 + 200 + 30)
    assert _stage(found, "score").seconds == pytest.approx(1000)
    assert found.seconds == pytest.approx(20 + 105 + 260 + 1010 + 202)
    assert found.hours == pytest.approx(found.seconds / 3600)
    assert found.bottleneck == "score"
    assert found.notes == ()


def test_seeds_repeat_the_work_and_the_fit_but_not_the_start() -> None:
    one, three = (estimate(MEASURED, Target(1_000_000, seeds=n)) for n in (1, 3))
    assert _stage(three, "score").start_seconds == _stage(one, "score").start_seconds == 10
    assert _stage(three, "score").seconds == pytest.approx(3 * _stage(one, "score").seconds)
    assert _stage(three, "cluster").seconds == pytest.approx(3 * _stage(one, "cluster").seconds)


def test_all_images_are_refined_where_no_number_is_set_or_it_is_larger() -> None:
    for refine_rows in (None, 10**9):
        found = estimate(MEASURED, Target(2_000_000, refine_rows=refine_rows))
        assert _stage(found, "cluster").seconds == pytest.approx(30 + 4 + 12)


def test_another_resolution_scales_pixels_and_flops_apart() -> None:
    found = estimate(MEASURED, Target(1_000_000, resolution=32, flops=10.0))
    assert _stage(found, "score").seconds == pytest.approx(16 * 2 + 10 * 8)
    assert _stage(found, "synth").disk_bytes == 16 * 60_000_000
    assert _stage(found, "score").disk_bytes == 25_000_000
    assert "extrapolated" in found.notes[0] and "16" in found.notes[0]


def test_memory_grows_with_the_embeddings_up_to_the_limit() -> None:
    limit = 1000 * MIB
    peak = [
        _stage(
            estimate(MEASURED, Target(10**8, refine_rows=rows, resident_bytes=limit)), "cluster"
        ).session_bytes
        for rows in (500_000, 2_500_000, 50_000_000)
    ]
    assert peak[0] == 2000 * MIB
    assert peak[1] == 2000 * MIB + 2_000_000 * 256
    assert peak[2] == 2000 * MIB + limit - 500_000 * 256


def test_what_grows_is_added_to_the_memory_of_the_moment_that_holds_it() -> None:
    """The embedding actors' peak stays as it is, until the refinement's is above it."""
    (cluster,) = (cost for cost in MEASURED.stages if cost.stage == "cluster")
    later = dataclasses.replace(cluster, growing_bytes=1600 * MIB)
    measured = dataclasses.replace(MEASURED, stages=(later,))
    for further, peak in ((10**6, 2000 * MIB), (4 * 10**6, 1600 * MIB + 4 * 10**6 * 256)):
        target = Target(10**8, refine_rows=500_000 + further)
        assert _stage(estimate(measured, target), "cluster").session_bytes == peak


def test_actors_share_what_grows() -> None:
    target = Target(10**8, refine_rows=2_500_000, resident_bytes=1000 * MIB)
    assert _stage(estimate(MEASURED, target), "cluster").actor_bytes == 700 * MIB + 256 * 10**6


def test_a_training_holds_its_images_up_to_what_it_streams() -> None:
    train = StageCost(
        "train",
        30.0,
        session_bytes=900 * MIB,
        loaded_share=0.5,
        loaded_most=10**6,
        loaded_bytes=128,
    )
    measured = dataclasses.replace(MEASURED, stages=(train,))
    for images, resolution, loaded in ((10**6, None, 500_000), (10**9, 16, 4 * 10**6)):
        found = _stage(estimate(measured, Target(images, resolution=resolution)), "train")
        assert found.session_bytes == 900 * MIB + 128 * loaded


def test_embeddings_lie_on_disk_until_the_clusters_are_fitted() -> None:
    """Beside the pool, and gone before the scores are written."""
    few, many = (
        estimate(MEASURED, Target(10**6, seeds=3, refine_rows=rows)) for rows in (10**4, 10**6)
    )
    assert _stage(many, "cluster").scratch_bytes == 3 * 300 * 10**6
    assert _stage(many, "cluster").disk_bytes == 0
    assert few.disk_bytes == 3 * (60 + 25) * 10**6
    assert many.disk_bytes == 3 * (60 + 300) * 10**6


def test_the_peak_is_the_largest_of_the_stages() -> None:
    small = estimate(MEASURED, Target(1_000_000, refine_rows=500_000))
    assert small.peak_bytes == 3000 * MIB
    large = estimate(MEASURED, Target(1_000_000_000, refine_rows=500_000))
    assert large.peak_bytes == 1500 * MIB + 8 * 999_000_000


def test_gpus_share_the_model_and_are_counted_as_reserved() -> None:
    measured = dataclasses.replace(MEASURED, gpus=2.0)
    two, eight = (estimate(measured, Target(10**8, gpus=n)) for n in (2.0, 8.0))
    assert _stage(two, "score").seconds == pytest.approx(1000)
    assert _stage(eight, "score").seconds == pytest.approx(200 + 800 / 4)
    assert two.gpu_hours == pytest.approx(2 * two.hours)
    assert two.notes == () and "extrapolated" in eight.notes[0]


def test_gpus_that_were_not_measured_change_no_time() -> None:
    plain, asked = estimate(MEASURED, Target(10**6)), estimate(MEASURED, Target(10**6, gpus=4.0))
    assert plain.gpu_hours is None
    assert asked.seconds == plain.seconds and asked.gpu_hours == pytest.approx(4 * asked.hours)
    assert "gpus_per_actor" in asked.notes[0]


def test_energy_and_cost() -> None:
    found = estimate(MEASURED, Target(10**8, watts=200.0, price=0.3))
    assert found.kwh == pytest.approx(0.2 * found.hours)
    assert found.cost == pytest.approx(0.3 * found.kwh)
    assert estimate(MEASURED, Target(10**8, watts=200.0)).cost is None
    assert estimate(MEASURED, Target(10**8)).kwh is None
    assert energy(7200.0, 500.0, 0.25) == pytest.approx((1.0, 0.25))
    assert energy(7200.0, None, 0.25) == (None, None) and energy(3600.0, 500.0, None)[1] is None


@given(st.integers(1, 10**10), st.integers(1, 10**10))
def test_more_images_never_take_less(a: int, b: int) -> None:
    few, many = (estimate(MEASURED, Target(n)) for n in sorted((a, b)))
    assert few.seconds <= many.seconds
    assert few.peak_bytes <= many.peak_bytes
    assert few.disk_bytes <= many.disk_bytes


def test_json_has_the_answer_and_the_measurements() -> None:
    content = json.loads(estimate(MEASURED, Target(10**8, watts=100.0)).to_json(MEASURED))
    assert content["hours"] == pytest.approx(content["seconds"] / 3600)
    assert content["stages"][0]["stage"] == "synth"
    assert content["measured"]["image_shape"] == [1, 8, 8]
