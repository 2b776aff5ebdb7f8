"""The stopping rule on histories worked out by hand, and the ends of the learning-rate schedules."""

import json
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, OneCycleLR

from ssat_ray.config import IntermediateConfig, TrainConfig
from ssat_ray.training.schedule import (
    FixedRule,
    PlateauRule,
    cosine_lr_factor,
    fixed_lr_factor,
    multistep_lr_factor,
    onecycle_lr_factor,
    rule_of,
    set_lr,
    steps_per_epoch,
)


def _rule(**changes: float) -> PlateauRule:
    options = {"delta": 0.5, "patience": 2, "max_steps": 1000, "cooldown_fraction": 0.25}
    return PlateauRule(**{**options, **changes})


def _plateau(accuracies: list[float], **changes: float) -> int | None:
    rule = _rule(**changes)
    for i, accuracy in enumerate(accuracies):
        rule.observe(10 * (i + 1), accuracy)
    return rule.plateau_step


def _by_definition(accuracies: list[float], delta: float, patience: int) -> int | None:
    """The first evaluation such that the last `patience` window means were no rise over the best."""
    best, misses = None, 0
    for i in range(2, len(accuracies)):
        mean = sum(accuracies[i - 2 : i + 1]) / 3
        if best is None or (mean >= best + delta if delta > 0 else mean > best):
            best, misses = mean, 0
        else:
            misses += 1
        if misses == patience:
            return 10 * (i + 1)
    return None


def test_a_flat_history_ends_patience_evaluations_after_the_first_window() -> None:
    assert _plateau([50] * 4) is None
    assert _plateau([50] * 5) == 50
    assert _plateau([50] * 20, patience=4) == 70


def test_nothing_is_decided_before_the_window_is_full() -> None:
    assert _plateau([90, 10], patience=1) is None
    assert _plateau([90, 10, 10], patience=1) is None  # the first mean is the first best
    assert _plateau([90, 10, 10, 10], patience=1) == 40


def test_delta_decides_what_a_rise_is() -> None:
    rising = [50 + 0.25 * i for i in range(20)]  # window means rise by 0.25 an evaluation
    assert _plateau(rising, delta=0.25, patience=1) is None
    assert _plateau(rising, delta=0.5, patience=2) is None  # every second evaluation counts
    assert _plateau(rising, delta=0.5, patience=1) == 40
    assert _plateau(rising, delta=1.0, patience=3) == 60


def test_with_delta_0_any_rise_counts_and_an_equal_mean_is_none() -> None:
    assert _plateau([50] * 4, delta=0) is None
    assert _plateau([50] * 20, delta=0) == 50
    assert _plateau([50 + 0.03 * i for i in range(20)], delta=0, patience=1) is None
    assert _plateau([50, 50, 50, 53, 53, 53, 53, 53], delta=0) == 80  # 50, 51, 52, 53, 53, 53


def test_one_lucky_evaluation_moves_a_window_of_three() -> None:
    history = [50, 50, 50, 53, 50, 50, 50, 50]  # means 50, 51, 51, 51, 50, 50
    assert _plateau(history, patience=3) == 70
    assert _plateau(history, patience=4) == 80


def test_slow_steps_still_add_up_against_the_best() -> None:
    assert _plateau([50, 50, 50, 50.3, 50.6, 50.9, 51.2], patience=3) is None
    assert _plateau([50, 50, 50, 50.3, 50.6, 50.9, 51.2], patience=2) == 50


def test_max_steps_ends_the_constant_phase() -> None:
    rising = [float(i) for i in range(50)]
    assert _plateau(rising, max_steps=120) == 120
    assert _plateau([1.0], max_steps=10) == 10


def test_a_plateau_at_max_steps_is_a_plateau() -> None:
    def hit(accuracies: list[float], max_steps: int) -> bool:
        rule = _rule(max_steps=max_steps)
        for i, accuracy in enumerate(accuracies):
            rule.observe(10 * (i + 1), accuracy)
        return rule.hit_max_steps

    assert not hit([50.0] * 4, 1000) and not hit([50.0] * 5, 1000) and not hit([50.0] * 5, 50)
    assert hit([50.0] * 4, 40) and hit([float(i) for i in range(5)], 50)


@given(
    st.lists(st.integers(0, 40).map(lambda v: v / 4), max_size=30),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    st.integers(1, 5),
)
def test_equals_the_definition(accuracies: list[float], delta: float, patience: int) -> None:
    expected = _by_definition(accuracies, delta, patience)
    assert _plateau(accuracies, delta=delta, patience=patience) == expected


@pytest.mark.parametrize(
    ("plateau", "fraction", "last"), [(50, 0.2, 60), (40, 0.25, 50), (40, 1.0, 80), (10, 0.0, 11)]
)
def test_the_cool_down_is_a_share_of_the_steps_so_far(plateau, fraction, last) -> None:
    rule = _rule(max_steps=plateau, cooldown_fraction=fraction)
    assert rule.last_step is None
    rule.observe(plateau, 50.0)
    assert (rule.plateau_step, rule.last_step) == (plateau, last)


def test_evaluations_in_the_cool_down_change_nothing() -> None:
    rule = _rule(max_steps=40)
    rule.observe(40, 50.0)
    for step, accuracy in ((45, 99.0), (50, 1.0)):
        rule.observe(step, accuracy)
    assert (rule.plateau_step, rule.last_step) == (40, 50)
    assert len(rule.history) == 3


def test_rate_warms_up_stays_and_falls_linearly_to_zero() -> None:
    rule = _rule(max_steps=40)
    assert [rule.lr_factor(s, 4) for s in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert rule.lr_factor(39, 4) == rule.lr_factor(400, 4) == 1.0
    assert rule.lr_factor(0, 0) == 1.0
    rule.observe(40, 50.0)
    factors = [rule.lr_factor(s, 4) for s in range(38, 51)]
    assert factors == pytest.approx([1, 1, 1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0])


@given(
    st.lists(st.integers(0, 40).map(float), min_size=1, max_size=25), st.data(), st.integers(1, 4)
)
def test_a_restored_rule_goes_on_as_if_nothing_had_happened(accuracies, data, patience) -> None:
    cut = data.draw(st.integers(0, len(accuracies)))
    whole, part = _rule(patience=patience, max_steps=180), _rule(patience=patience, max_steps=180)
    for i, accuracy in enumerate(accuracies):
        if i == cut:
            part = PlateauRule.restore(json.loads(json.dumps(part.state())))
        whole.observe(10 * (i + 1), accuracy)
        part.observe(10 * (i + 1), accuracy)
    assert part == whole and part.last_step == whole.last_step


def test_a_saved_state_does_not_follow_the_rule() -> None:
    rule = _rule()
    rule.observe(10, 50.0)
    state = rule.state()
    rule.observe(20, 60.0)
    assert state["history"] == [(10, 50.0)]


def test_fixed_schedule_endpoints() -> None:
    def factor(step: int, warmup: int = 10) -> float:
        return fixed_lr_factor(step, 100, warmup)

    assert factor(0) == pytest.approx(0.1) and factor(4) == pytest.approx(0.5)
    assert factor(9) == factor(30) == factor(60) == 1.0
    assert factor(80) == pytest.approx(0.5) and factor(99) == pytest.approx(1 / 40)
    assert factor(100) == 0.0 and factor(0, warmup=0) == 1.0
    assert fixed_lr_factor(0, 1, 0) == 1.0


def test_fixed_schedule_never_leaves_zero_to_one() -> None:
    for num_steps in (1, 2, 7, 50):
        for warmup in (0, 1, 20, 200):
            factors = [fixed_lr_factor(s, num_steps, warmup) for s in range(num_steps)]
            assert all(0 < f <= 1 for f in factors)


def _rates(make: Callable[[SGD], LRScheduler], num_steps: int) -> list[float]:
    """What PyTorch's scheduler sets before each step, at a rate of 1."""
    optimiser = SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler, rates = make(optimiser), []
    for _ in range(num_steps):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("num_steps", "pct_start"),
    [(400, 0.025), (1000, 0.3), (37, 0.31), (50, 0.0), (60, 1.0), (8, 0.05), (1, 0.3), (2, 0.9)],
)
def test_onecycle_equals_pytorchs(num_steps: int, pct_start: float) -> None:
    def make(optimiser: SGD) -> LRScheduler:
        return OneCycleLR(
            optimiser, 1.0, total_steps=num_steps + 1, pct_start=pct_start, cycle_momentum=False
        )

    expected = _rates(make, num_steps)
    found = [onecycle_lr_factor(s, num_steps + 1, pct_start) for s in range(num_steps)]
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_onecycle_starts_at_its_peak_where_pytorchs_divides_by_zero() -> None:
    """A warm-up of exactly one step: `pct_start * total_steps` is 1."""
    with pytest.raises(ZeroDivisionError):
        OneCycleLR(
            SGD([torch.zeros(1, requires_grad=True)], lr=1.0), 1.0, total_steps=40, pct_start=0.025
        )
    factors = [onecycle_lr_factor(s, 40, 0.025) for s in range(40)]
    assert factors[0] == 1 and factors[-1] == pytest.approx(4e-6)
    assert factors == sorted(factors, reverse=True)
    assert onecycle_lr_factor(0, 1, 1.0) == 1


def test_cosine_equals_pytorchs_after_the_warm_up_and_ends_at_0() -> None:
    expected = _rates(lambda optimiser: CosineAnnealingLR(optimiser, T_max=90), 90)
    found = [cosine_lr_factor(s, 100, 10) for s in range(100)]
    assert found[:10] == pytest.approx([0.1 * (s + 1) for s in range(10)])
    assert found[10:] == pytest.approx(expected, abs=1e-12)
    assert cosine_lr_factor(100, 100, 10) == pytest.approx(0, abs=1e-15)
    assert cosine_lr_factor(0, 100, 0) == 1
    assert [cosine_lr_factor(s, 2, 4) for s in range(2)] == [0.25, 0.5]


def test_multistep_equals_pytorchs() -> None:
    """Over 100 epochs of 3 steps, at epochs 75 and 90."""
    expected = _rates(lambda optimiser: MultiStepLR(optimiser, [225, 270], gamma=0.1), 300)
    found = [multistep_lr_factor(s, 300, 0, (0.75, 0.9)) for s in range(300)]
    assert found == pytest.approx(expected)
    warm = [multistep_lr_factor(s, 300, 4, (0.75, 0.9)) for s in range(300)]
    assert warm[:4] == [0.25, 0.5, 0.75, 1.0] and warm[4:] == found[4:]
    assert [multistep_lr_factor(s, 4, 0, ()) for s in range(4)] == [1.0] * 4


def test_a_fixed_rule_ends_where_it_was_told_to() -> None:
    for name, expected in (
        ("decay", fixed_lr_factor(30, 40, 5)),
        ("onecycle", onecycle_lr_factor(30, 40, 0.2)),
        ("cosine", cosine_lr_factor(30, 40, 5)),
        ("multistep", 0.1),
    ):
        rule = FixedRule(name, 40, 0.2, (0.5, 0.9))
        for step in range(10, 41, 10):
            rule.observe(step, 0.0)
        assert (rule.last_step, rule.expected_steps, rule.plateau_step) == (40, 40, None)
        assert not rule.hit_max_steps
        assert rule.lr_factor(30, 5) == pytest.approx(expected)
        assert rule.restore(json.loads(json.dumps(rule.state()))) == rule


def test_expected_steps_before_and_after_the_plateau() -> None:
    rule = _rule(max_steps=40)
    assert rule.expected_steps == 50
    for step in (8, 16, 24, 32):
        rule.observe(step, 50.0)
    assert rule.expected_steps == 50
    rule.observe(36, 50.0)
    assert rule.expected_steps == rule.last_step == 45


@given(st.integers(1, 10_000), st.integers(1, 600))
def test_an_epoch_is_the_fewest_batches_that_hold_all_labelled_images(images, batch) -> None:
    steps = steps_per_epoch(images, batch)
    assert (steps - 1) * batch < images <= steps * batch


def test_an_epoch_counts_whole_batches_whatever_the_pools_share() -> None:
    recipe = {"schedule": "onecycle", "num_epochs": 400, "batch_size": 512}
    for share in (0.0, 0.7):
        rule = rule_of(TrainConfig(**recipe, unsup_fraction=share, pct_start=0.1), 48_976)
        assert rule == FixedRule("onecycle", 400 * 96, 0.1, (0.75, 0.9))


def test_the_rule_is_what_the_section_asks_for() -> None:
    steps = rule_of(TrainConfig(schedule="multistep", num_steps=77, milestones=(0.3,)), 1000)
    assert steps == FixedRule("multistep", 77, 0.025, (0.3,))
    plateau = rule_of(TrainConfig(delta=0.2, patience=3, max_steps=9, cooldown_fraction=0.1), 1000)
    assert plateau == PlateauRule(0.2, 3, 9, 0.1)
    assert rule_of(IntermediateConfig(num_steps=13), 1000) == FixedRule("decay", 13)


def test_set_lr_reaches_every_group() -> None:
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": lr} for lr in (0.1, 0.2)]
    optimiser = torch.optim.SGD(groups)
    set_lr(optimiser, 0.3)
    assert [group["lr"] for group in optimiser.param_groups] == [0.3, 0.3]
