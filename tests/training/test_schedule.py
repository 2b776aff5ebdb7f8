"""The stopping rule on histories worked out by hand, and the ends of the learning-rate schedules."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssat_ray.training.schedule import PlateauRule, fixed_lr_factor, set_lr


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


def test_set_lr_reaches_every_group() -> None:
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": lr} for lr in (0.1, 0.2)]
    optimiser = torch.optim.SGD(groups)
    set_lr(optimiser, 0.3)
    assert [group["lr"] for group in optimiser.param_groups] == [0.3, 0.3]
