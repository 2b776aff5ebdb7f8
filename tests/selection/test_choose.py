"""The balanced choice: an oracle, exact counts, any chunks, fairness of the random part, refusals."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssat_ray.selection.choose import REASONS, DegenerateScoreError, Ranking, choose
from ssat_ray.selection.scores import random_score

REMAINDER = 0x52454D41494E4452  # "REMAINDR": part of the result, so a change is a new stage version


def reader(columns, stops=()):
    """Chunks that end at `stops`, as `choose` reads them: only the columns asked for."""

    def read(names):
        bounds = [0, *sorted(stops), len(columns["id"])]
        for start, stop in pairwise(bounds):
            yield {name: columns[name][start:stop] for name in names}

    return read


def select(ids, score, *, labels=None, hashes=None, stops=(), **options):
    columns = {"id": ids, "score": score, "label": labels, "hash": hashes}
    read = reader({name: values for name, values in columns.items() if values is not None}, stops)
    return choose(read, **{"num_rows": len(ids), "ranking": Ranking(), **options})


@st.composite
def pools(draw):
    num_points = draw(st.integers(800, 1000))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    ids = np.sort(rng.choice(10**9, size=num_points, replace=False)) - 10**6
    # Every value occurs at most twice, so that ties reach the cut (of each class) but
    # stay within 1 %. There is no class 1.
    score = rng.permutation(np.repeat(rng.normal(size=num_points), 2)[:num_points])
    labels = rng.choice([0, 2, 3, 4], size=num_points, p=[0.55, 0.3, 0.1, 0.05]).astype(np.int16)
    hashes = rng.integers(0, 2**64, num_points, dtype=np.uint64)
    hashes[rng.integers(0, num_points, 60)] = hashes[rng.integers(0, num_points, 60)]
    ratio, fraction = draw(st.floats(0.02, 1)), draw(st.sampled_from([0.0, 0.37, 0.8, 1.0]))
    options = {"ratio": ratio, "boundary_fraction": fraction, "seed": draw(st.integers(0, 99))}
    return ids, score.astype(np.float32), labels, hashes, options


def shares(total, sizes):
    """Largest remainder by handing out one seat at a time."""
    exact = {label: total * size / sum(sizes.values()) for label, size in sizes.items()}
    found = {label: total * size // sum(sizes.values()) for label, size in sizes.items()}
    for label in sorted(sizes, key=lambda x: (-round(exact[x] - found[x], 9), x)):
        found[label] += sum(found.values()) < total
    return found


def oracle(ids, score, labels, hashes, options, dedup):
    """The choice by full sorts of all rows in memory: {id: reason}, and the rows left out."""
    first = np.unique(hashes, return_index=True)[1] if dedup else np.arange(len(ids))
    ids, score, labels = ids[np.sort(first)], score[np.sort(first)], labels[np.sort(first)]
    draw = random_score(ids, options["seed"] ^ REMAINDER)
    n = round(options["ratio"] * len(ids))
    taken = shares(n, Counter(labels.tolist()))
    boundary = shares(round(options["boundary_fraction"] * n), taken)
    reason = {}
    for label, quota in taken.items():
        (rows,) = np.nonzero(labels == label)
        rows = rows[np.lexsort((ids[rows], score[rows]))]
        rest = rows[boundary[label] :]
        drawn = rest[np.argsort(draw[rest])][: quota - boundary[label]]
        reason |= dict.fromkeys(ids[rows[: boundary[label]]].tolist(), "boundary")
        reason |= dict.fromkeys(ids[drawn].tolist(), "random")
    return reason, len(hashes) - len(first)


@settings(max_examples=100, deadline=None)
@given(
    pool=pools(), per_class=st.booleans(), dedup=st.booleans(),
    stops=st.lists(st.integers(0, 800), max_size=6),
)  # fmt: skip
def test_choice_equals_full_sorts_for_any_chunks(pool, per_class, dedup, stops):
    ids, score, labels, hashes, options = pool
    found = select(
        ids, score, labels=labels, hashes=hashes, stops=stops, per_class=per_class, dedup=dedup,
        **options,
    )  # fmt: skip
    groups = labels if per_class else np.zeros_like(labels)
    expected, num_left_out = oracle(ids, score, groups, hashes, options, dedup)
    assert found.ids.tolist() == sorted(expected)
    assert [REASONS[code] for code in found.reason] == [expected[i] for i in sorted(expected)]
    assert (found.ids.dtype, found.reason.dtype) == (np.int64, np.int8)
    assert found.num_duplicates == num_left_out
    whole = select(
        ids, score, labels=labels, hashes=hashes, per_class=per_class, dedup=dedup, **options
    )
    assert (found.cut, found.num_tied_at_cut) == (whole.cut, whole.num_tied_at_cut)


@settings(max_examples=40, deadline=None)
@given(pool=pools())
def test_cut_and_ties_are_those_of_the_boundary_part(pool):
    ids, score, _, _, options = pool
    found = select(ids, score, **options)
    num_boundary = round(options["boundary_fraction"] * round(options["ratio"] * len(ids)))
    ranked = sorted(score.tolist())
    if num_boundary:
        assert found.cut == ranked[num_boundary - 1]
        same = ranked.count(found.cut)
        assert found.num_tied_at_cut == (same if same > 1 else 0)
    else:
        assert (found.cut, found.num_tied_at_cut) == (-np.inf, 0)


@settings(max_examples=40, deadline=None)
@given(pool=pools())
def test_per_class_quotas_are_proportional_and_exact(pool):
    ids, score, labels, _, options = pool
    found = select(ids, score, labels=labels, per_class=True, **options)
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


@pytest.mark.parametrize("per_class", [False, True])
def test_random_selector_takes_the_lowest_random_scores_and_reads_no_scores(per_class):
    ids, labels = np.arange(1000) * 7, np.arange(1000) % 4
    read = reader({"id": ids, "label": labels} if per_class else {"id": ids}, [1, 300])
    found = choose(
        read, num_rows=1000, ratio=0.2, boundary_fraction=0, seed=5, ranking=None,
        per_class=per_class,
    )  # fmt: skip
    groups = labels if per_class else np.zeros(1000)
    quota = 200 // len(set(groups))
    expected = [
        ids[groups == group][np.argsort(random_score(ids[groups == group], 5))[:quota]]
        for group in set(groups)
    ]
    assert found.ids.tolist() == sorted(np.concatenate(expected).tolist())
    assert set(found.reason) == {REASONS.index("random")}
    assert (found.cut, found.num_tied_at_cut) == (-np.inf, 0)


def test_draw_is_exact_when_hashes_are_not_uniform():
    candidates = np.arange(40_000)
    ids = candidates[random_score(candidates, 3 ^ REMAINDER) > 0.9]
    found = select(ids, np.arange(len(ids)), ratio=0.1, boundary_fraction=0, seed=3)
    ranked = ids[np.argsort(random_score(ids, 3 ^ REMAINDER))]
    assert found.ids.tolist() == sorted(ranked[: round(0.1 * len(ids))].tolist())


def test_ranking_computes_the_score_from_its_columns():
    near, far = np.array([1.0, 1, 1, 1], np.float32), np.array([9.0, 2, 3, 8], np.float32)
    found = choose(
        reader({"id": np.arange(4), "near": near, "far": far}, [2]), num_rows=4, ratio=0.5,
        boundary_fraction=1, seed=0,
        ranking=Ranking(("near", "far"), lambda chunk: chunk["far"] - chunk["near"]),
    )  # fmt: skip
    assert (found.ids.tolist(), found.cut) == ([1, 2], 2)


def test_scores_are_compared_as_float32():
    score = np.array([1.0 + 1e-12, 1.0, 2.0])
    found = select(np.arange(3), score, ratio=1 / 3, boundary_fraction=0, seed=0)
    assert len(found.ids) == 1
    with pytest.raises(DegenerateScoreError, match="2 of 3 points tie"):
        select(np.arange(3), score, ratio=1 / 3, boundary_fraction=1, seed=0)


def test_copies_count_in_no_size_tie_or_quota():
    labels = np.repeat([0, 1], 100)
    hashes = np.arange(200, dtype=np.uint64)
    score = np.arange(200.0)
    hashes[10:50], score[10:50] = 3, 3
    found = select(
        np.arange(200), score, labels=labels, hashes=hashes, ratio=0.05, boundary_fraction=1,
        seed=0, per_class=True, dedup=True,
    )  # fmt: skip
    assert found.num_duplicates == 40
    assert found.num_tied_at_cut == 0
    # 160 points remain, 60 and 100 of the classes: 8 of them, and 3 and 5 of the classes.
    assert found.ids.tolist() == [0, 1, 2, 100, 101, 102, 103, 104]


def test_largest_remainder_goes_to_the_smaller_label_on_ties():
    labels = np.repeat([0, 1, 2], 3)
    found = select(
        np.arange(9), np.arange(9.0), ratio=4 / 9, boundary_fraction=1, seed=0,
        labels=labels, per_class=True,
    )  # fmt: skip
    assert found.ids.tolist() == [0, 1, 3, 6]


def test_random_part_is_uniform_over_the_remainder():
    ids, score = np.arange(100), np.arange(100.0)
    hits, pairs = np.zeros(100), 0
    for seed in range(600):
        found = select(ids, score, ratio=0.4, boundary_fraction=0.5, seed=seed)
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
    found = select(ids, score, ratio=0.2, boundary_fraction=0.4, seed=0, method="random")
    drawn = found.ids[found.reason == 1]
    # Shared hashes would draw the next lowest scores, 0.08 to 0.2; a fair draw averages 0.54.
    assert score[drawn].mean() == pytest.approx(0.54, abs=0.04)


def test_seed_changes_the_random_part_only():
    ids, score = np.arange(1000), np.random.default_rng(0).normal(size=1000)
    first, second = (
        select(ids, score, ratio=0.2, boundary_fraction=0.4, seed=s) for s in (0, 1)
    )  # fmt: skip
    np.testing.assert_array_equal(first.ids[first.reason == 0], second.ids[second.reason == 0])
    assert set(first.ids[first.reason == 1]) != set(second.ids[second.reason == 1])


def test_everything_is_a_choice():
    found = select(np.arange(7), np.arange(7.0), ratio=1, boundary_fraction=0.5, seed=0)
    assert found.ids.tolist() == list(range(7))
    assert found.reason.tolist() == [0, 0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(("num_tied", "refused"), [(10, False), (11, True)])
def test_more_than_one_in_a_hundred_tied_at_the_cut_is_degenerate(num_tied, refused):
    score = np.arange(1000.0)
    score[95 : 95 + num_tied] = 95
    options = {"ratio": 0.1, "boundary_fraction": 1, "seed": 0, "method": "lcs-gmm"}
    if refused:
        with pytest.raises(DegenerateScoreError, match="'lcs-gmm': 11 of 1000 points tie"):
            select(np.arange(1000), score, **options)
    else:
        found = select(np.arange(1000), score, **options)
        assert (found.cut, found.num_tied_at_cut) == (95, 10)
        assert found.ids.tolist() == list(range(100))


def test_ties_away_from_the_cut_do_not_matter():
    score = np.where(np.arange(1000) < 50, 0.0, np.arange(1000.0))
    found = select(np.arange(1000), score, ratio=0.1, boundary_fraction=1, seed=0)
    assert found.num_tied_at_cut == 0


def test_classes_without_ties_are_not_degenerate_in_a_small_pool():
    found = select(
        np.arange(20), np.arange(20.0), ratio=0.5, boundary_fraction=1, seed=0,
        labels=np.arange(20) % 10, per_class=True,
    )  # fmt: skip
    assert found.num_tied_at_cut == 0


def test_ties_inside_one_class_count_for_per_class_quotas():
    labels = np.repeat([0, 1], 500)
    score = np.where(labels == 1, 0.0, np.arange(1000.0))
    with pytest.raises(DegenerateScoreError, match="500 of 1000"):
        select(
            np.arange(1000), score, ratio=0.2, boundary_fraction=1, seed=0,
            labels=labels, per_class=True,
        )  # fmt: skip


def test_ties_add_up_over_the_classes():
    labels = np.repeat([0, 1], 500)
    score = np.arange(1000.0)
    score[98:101], score[597:601] = -1, -2
    found = select(
        np.arange(1000), score, ratio=0.004, boundary_fraction=1, seed=0,
        labels=labels, per_class=True,
    )  # fmt: skip
    assert found.num_tied_at_cut == 3 + 4
    assert found.ids.tolist() == [98, 99, 597, 598]
    assert found.cut == -1


def test_nan_scores_are_degenerate():
    with pytest.raises(DegenerateScoreError, match="'pcs': 1 of 3 scores are NaN"):
        select(
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
        ({"ranking": None}, "boundary_fraction must be 0, found 0.5"),
        ({"ids": np.array([0, 1, 2, 3, 3, 5, 6, 7, 8, 9])}, "unique, found 3 after 3"),
        ({"ids": np.array([0, 1, 2, 9, 4, 5, 6, 7, 8, 11])}, "ascend .* found 4 after 9"),
        ({"ids": np.array([0, 1, 2, 3, 3, 5, 6, 7, 8, 9]), "stops": [4]}, "found 3 after 3"),
        ({"ids": np.array([5, 6, 7, 8, 1, 2, 3, 4, 9, 10]), "stops": [4, 4]}, "found 1 after 8"),
        ({"ids": np.arange(10.0)}, "ids must be integers, found float64"),
        ({"num_rows": 11}, "expected 11 rows, found 10"),
        ({"num_rows": 9}, "expected 9 rows, found 10 or more"),
        ({"per_class": True, "labels": np.arange(-2, 8)}, "found 2 without one"),
    ],
)
def test_choose_refuses_and_names_method_and_setting(changes, message):
    options = {
        "ids": np.arange(10), "score": np.arange(10.0), "ratio": 0.5, "boundary_fraction": 0.5,
        "seed": 0, "method": "easy", **changes,
    }  # fmt: skip
    with pytest.raises(ValueError, match=f"selector 'easy': .*{message}"):
        select(options.pop("ids"), options.pop("score"), **options)


def test_an_empty_table_is_refused():
    with pytest.raises(ValueError, match=r"ratio 0\.5 of 0 points is no point"):
        select(np.arange(0), np.zeros(0), ratio=0.5, boundary_fraction=1, seed=0)
