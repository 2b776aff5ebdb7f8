"""The balanced choice: exact counts, order invariance, fairness of the random part, refusals."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssat_ray.selection.choose import REASONS, DegenerateScoreError, choose
from ssat_ray.selection.scores import random_score


@st.composite
def pools(draw):
    num_points = draw(st.integers(800, 1000))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    ids = rng.choice(10**9, size=num_points, replace=False) - 10**6
    # Every value occurs at most twice, so that ties reach the cut (of each class) but
    # stay within 1 %.
    score = rng.permutation(np.repeat(rng.normal(size=num_points), 2)[:num_points])
    labels = rng.choice(4, size=num_points, p=[0.55, 0.3, 0.1, 0.05])
    ratio, fraction = draw(st.floats(0.02, 1)), draw(st.floats(0, 1))
    return ids, score, labels, {"ratio": ratio, "boundary_fraction": fraction, "seed": 11}


@settings(max_examples=40, deadline=None)
@given(pool=pools(), per_class=st.booleans(), shuffle=st.integers(0, 2**32))
def test_choice_does_not_depend_on_the_order_of_rows(pool, per_class, shuffle):
    ids, score, labels, options = pool
    order = np.random.default_rng(shuffle).permutation(len(ids))
    first = choose(ids, score, labels=labels, per_class=per_class, **options)
    second = choose(ids[order], score[order], labels=labels[order], per_class=per_class, **options)
    np.testing.assert_array_equal(first.ids, second.ids)
    np.testing.assert_array_equal(first.reason, second.reason)
    assert (first.cut, first.num_tied_at_cut) == (second.cut, second.num_tied_at_cut)


@settings(max_examples=40, deadline=None)
@given(pool=pools())
def test_boundary_part_is_the_lowest_by_score_then_id_and_the_rest_is_disjoint(pool):
    ids, score, _, options = pool
    found = choose(ids, score, **options)
    n = round(options["ratio"] * len(ids))
    num_boundary = round(options["boundary_fraction"] * n)
    ranked = sorted(zip(score.tolist(), ids.tolist(), strict=True))
    boundary = found.ids[found.reason == REASONS.index("boundary")]
    assert boundary.tolist() == sorted(i for _, i in ranked[:num_boundary])
    rest = found.ids[found.reason == REASONS.index("random")]
    assert len(rest) == n - num_boundary
    assert set(rest.tolist()) <= {i for _, i in ranked[num_boundary:]}
    assert len(set(found.ids.tolist())) == n
    assert (np.diff(found.ids) > 0).all()
    assert found.ids.dtype == np.int64
    if num_boundary:
        assert found.cut == ranked[num_boundary - 1][0]
        same = sum(s == found.cut for s, _ in ranked)
        assert found.num_tied_at_cut == (same if same > 1 else 0)
    else:
        assert found.cut == -np.inf


@settings(max_examples=40, deadline=None)
@given(pool=pools())
def test_per_class_quotas_are_proportional_and_exact(pool):
    ids, score, labels, options = pool
    found = choose(ids, score, labels=labels, per_class=True, **options)
    n = round(options["ratio"] * len(ids))
    num_boundary = round(options["boundary_fraction"] * n)
    assert len(found.ids) == n
    assert (found.reason == 0).sum() == num_boundary
    label_of = dict(zip(ids.tolist(), labels.tolist(), strict=True))
    taken = Counter(label_of[i] for i in found.ids.tolist())
    at_boundary = Counter(label_of[i] for i in found.ids[found.reason == 0].tolist())
    for label, size in Counter(labels.tolist()).items():
        assert abs(taken[label] - n * size / len(ids)) < 1
        assert abs(at_boundary[label] - num_boundary * taken[label] / n) < 1
        ranked = sorted((s, i) for s, i in zip(score, ids, strict=True) if label_of[i] == label)
        boundary = {i for i in found.ids[found.reason == 0].tolist() if label_of[i] == label}
        assert boundary == {i for _, i in ranked[: at_boundary[label]]}


def test_largest_remainder_goes_to_the_smaller_label_on_ties():
    labels = np.repeat([0, 1, 2], 3)
    found = choose(
        np.arange(9), np.arange(9.0), ratio=4 / 9, boundary_fraction=1, seed=0,
        labels=labels, per_class=True,
    )  # fmt: skip
    assert found.ids.tolist() == [0, 1, 3, 6]


def test_random_part_is_uniform_over_the_remainder():
    ids, score = np.arange(100), np.arange(100.0)
    hits, pairs = np.zeros(100), 0
    for seed in range(600):
        found = choose(ids, score, ratio=0.4, boundary_fraction=0.5, seed=seed)
        drawn = found.ids[found.reason == 1]
        hits[drawn] += 1
        pairs += {50, 51} <= set(drawn.tolist())
    assert (hits[:20] == 0).all()
    # 20 of 80 each time: mean 150, standard deviation 10.6; a pair has odds 20 x 19 / (80 x 79).
    assert np.abs(hits[20:] - 150).max() < 4.5 * 10.6
    assert abs(hits[20:].std() - 10.6) < 3
    assert abs(pairs - 600 * 380 / 6320) < 4 * 6


def test_random_part_is_independent_of_the_random_selector_at_one_seed():
    ids = np.arange(10_000)
    score = random_score(ids, 0)
    found = choose(ids, score, ratio=0.2, boundary_fraction=0.4, seed=0, method="random")
    drawn = found.ids[found.reason == 1]
    # Shared hashes would draw the next lowest scores, 0.08 to 0.2; a fair draw averages 0.54.
    assert score[drawn].mean() == pytest.approx(0.54, abs=0.04)


def test_seed_changes_the_random_part_only():
    ids, score = np.arange(1000), np.random.default_rng(0).normal(size=1000)
    first, second = (
        choose(ids, score, ratio=0.2, boundary_fraction=0.4, seed=s) for s in (0, 1)
    )  # fmt: skip
    np.testing.assert_array_equal(first.ids[first.reason == 0], second.ids[second.reason == 0])
    assert set(first.ids[first.reason == 1]) != set(second.ids[second.reason == 1])


def test_everything_is_a_choice():
    found = choose(np.arange(7), np.arange(7.0), ratio=1, boundary_fraction=0.5, seed=0)
    assert found.ids.tolist() == list(range(7))
    assert found.reason.tolist() == [0, 0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(("num_tied", "refused"), [(10, False), (11, True)])
def test_more_than_one_in_a_hundred_tied_at_the_cut_is_degenerate(num_tied, refused):
    score = np.arange(1000.0)
    score[95 : 95 + num_tied] = 95
    options = {"ratio": 0.1, "boundary_fraction": 1, "seed": 0, "method": "lcs-gmm"}
    if refused:
        with pytest.raises(DegenerateScoreError, match="'lcs-gmm': 11 of 1000 points tie"):
            choose(np.arange(1000), score, **options)
    else:
        found = choose(np.arange(1000), score, **options)
        assert (found.cut, found.num_tied_at_cut) == (95, 10)
        assert found.ids.tolist() == list(range(100))


def test_ties_away_from_the_cut_do_not_matter():
    score = np.where(np.arange(1000) < 50, 0.0, np.arange(1000.0))
    found = choose(np.arange(1000), score, ratio=0.1, boundary_fraction=1, seed=0)
    assert found.num_tied_at_cut == 0


def test_classes_without_ties_are_not_degenerate_in_a_small_pool():
    found = choose(
        np.arange(20), np.arange(20.0), ratio=0.5, boundary_fraction=1, seed=0,
        labels=np.arange(20) % 10, per_class=True,
    )  # fmt: skip
    assert found.num_tied_at_cut == 0


def test_ties_inside_one_class_count_for_per_class_quotas():
    labels = np.repeat([0, 1], 500)
    score = np.where(labels == 1, 0.0, np.arange(1000.0))
    with pytest.raises(DegenerateScoreError, match="500 of 1000"):
        choose(
            np.arange(1000), score, ratio=0.2, boundary_fraction=1, seed=0,
            labels=labels, per_class=True,
        )  # fmt: skip


def test_ties_add_up_over_the_classes():
    labels = np.repeat([0, 1], 500)
    score = np.arange(1000.0)
    score[98:101], score[597:601] = -1, -2
    found = choose(
        np.arange(1000), score, ratio=0.004, boundary_fraction=1, seed=0,
        labels=labels, per_class=True,
    )  # fmt: skip
    assert found.num_tied_at_cut == 3 + 4
    assert found.ids.tolist() == [98, 99, 597, 598]
    assert found.cut == -1


def test_nan_scores_are_degenerate():
    with pytest.raises(DegenerateScoreError, match="'pcs': 1 of 3 scores are NaN"):
        choose(
            np.arange(3), np.array([0, np.nan, 1]), ratio=1, boundary_fraction=1, seed=0,
            method="pcs",
        )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ratio": 0}, r"select\.ratio must be in \(0, 1\], found 0"),
        ({"ratio": 1.1}, r"select\.ratio must be in \(0, 1\], found 1.1"),
        ({"ratio": float("nan")}, r"select\.ratio must be in"),
        ({"ratio": 0.01}, r"select\.ratio 0.01 of 10 points is no point"),
        ({"boundary_fraction": -0.1}, r"select\.boundary_fraction must be in \[0, 1\], found -0.1"),
        ({"boundary_fraction": 1.5}, r"select\.boundary_fraction must be in"),
        ({"ids": np.array([3, 1, 2, 3, 4, 5, 6, 7, 8, 9])}, "unique, found 3 twice"),
        ({"ids": np.arange(9)}, r"\(9,\) and \(10,\)"),
        ({"ids": np.arange(10.0)}, "ids integers; found float64"),
        ({"per_class": True}, "per_class needs one label a point .* found none"),
        ({"per_class": True, "labels": np.zeros(9, int)}, r"per_class .* found \(9,\)"),
        ({"per_class": True, "labels": np.arange(-2, 8)}, "found 2 without one"),
    ],
)
def test_choose_refuses_and_names_method_and_setting(changes, message):
    options = {
        "ids": np.arange(10), "score": np.arange(10.0), "ratio": 0.5, "boundary_fraction": 0.5,
        "seed": 0, "method": "easy", **changes,
    }  # fmt: skip
    with pytest.raises(ValueError, match=f"selector 'easy': .*{message}"):
        choose(options.pop("ids"), options.pop("score"), **options)
