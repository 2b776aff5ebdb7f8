"""The figures of a selection: samples keep their time, peaks stay, the cut colours what lies below it."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssat_ray.report import selection_figures as draw

COLOURS = {"synth": 0, "cluster": 1, "score": 2, "select": 3}


def session(started, *samples):
    return {"started": started, "samples": [list(sample) for sample in samples]}


def texts(svg):
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_sessions_follow_one_another_with_their_bands_and_the_pause_between():
    line = draw.timeline(
        [
            session("2026-05-04T10:00:00+00:00", (5, 1, ""), (10, 2, "a"), (15, 3, "a")),
            session("2026-05-04T10:01:00+00:00"),
            session("2026-05-04T10:02:15+00:00", (5, 4, "a"), (10, 5, "b"), (15, 6, "a")),
        ]
    )
    assert line.seconds.tolist() == [5, 10, 15, 20, 25, 30]
    assert line.used.tolist() == [1, 2, 3, 4, 5, 6]
    assert line.session.tolist() == [0, 0, 0, 1, 1, 1]
    assert line.bands == [("a", 5, 15), ("a", 15, 20), ("b", 20, 25), ("a", 25, 30)]
    assert line.pauses == [(15, 120.0)]


def test_a_stage_that_comes_back_after_idle_time_is_another_band():
    line = draw.timeline([session("", (5, 1, "a"), (10, 1, ""), (15, 1, "a"))])
    assert line.bands == [("a", 0, 5), ("a", 10, 15)]


@pytest.mark.parametrize("started", ["", None, "yesterday", "2026-05-04T10:00:00"])
def test_start_times_that_do_not_tell_leave_the_pause_open(started):
    sessions = [session("2026-05-04T10:00:00+00:00", (5, 1, "")), session(started, (5, 1, ""))]
    line = draw.timeline(sessions)
    assert line.pauses == [(5, None)]
    assert "new session" in texts(draw.memory_over_time(line, None, {}, wide=True))


@pytest.mark.parametrize("sessions", [[], [session("")]])
def test_without_samples_there_is_no_timeline(sessions):
    assert draw.timeline(sessions) is None


@given(st.lists(st.floats(0, 1e12), min_size=1, max_size=300), st.integers(1, 50))
def test_thinning_keeps_the_peak_the_order_and_the_limit(used, num):
    seconds, used = np.arange(len(used), dtype=float), np.array(used)
    x, y = draw.peaks(seconds, used, num)
    assert len(x) == len(y) <= max(num, 1)
    assert y.max() == used.max()
    assert np.all(np.diff(x) > 0)
    np.testing.assert_array_equal(used[x.astype(int)], y)


@pytest.mark.parametrize("wide", [True, False])
def test_the_memory_chart_names_stages_pause_and_unit(selection_results, wide):
    results = selection_results()
    line = draw.timeline(results["sessions"])
    svg = draw.memory_over_time(line, results["memory"], COLOURS, wide)
    assert {"synth", "cluster", "score", "select", "memory, GiB"} <= set(texts(svg))
    assert "running time, min" in texts(svg)
    assert "pause of 2 h 27 min" in texts(svg)
    assert svg.count("var(--boundary)") == 2
    assert "at most 3.04 GiB; stages: synth, cluster, score, select" in svg


def test_the_medians_are_drawn_only_where_they_are_known(selection_results):
    line = draw.timeline(selection_results()["sessions"])
    for memory in (None, {"rise": None}):
        assert "var(--boundary)" not in draw.memory_over_time(line, memory, COLOURS, wide=True)


def test_small_and_short_runs_have_units_to_match():
    line = draw.timeline([session("", (5, 40 * 2**20, ""), (10, 50 * 2**20, ""))])
    svg = draw.memory_over_time(line, None, {}, wide=True)
    assert {"memory, MiB", "running time, s"} <= set(texts(svg))
    assert "at most 50 MiB; stages: not recorded" in svg


@pytest.mark.parametrize("moment", [0.0, 5.0])
def test_a_single_sample_draws(moment):
    line = draw.timeline([session("", (moment, 0, "synth"))])
    assert "synth" in texts(draw.memory_over_time(line, None, COLOURS, wide=False))


def test_of_many_bands_the_longest_keep_their_names():
    samples = [(5 * (i + 1), 1, f"s{i}") for i in range(60)] + [(600, 1, "long")]
    line = draw.timeline([session("", *samples)])
    colours = {stage: 0 for stage, *_ in line.bands}
    named = set(texts(draw.memory_over_time(line, None, colours, wide=False)))
    assert "long" in named
    assert 10 < len(named & set(colours)) < 30


def cluster(**changes):
    return {
        "method": "kmeans",
        "seed": 0,
        "history": [5e8, 4e8, 3e8],
        "shares": [0.2, 0.5, 0.3],
    } | changes


def test_convergence_shows_every_seed_of_its_method():
    others = [cluster(seed=1, history=[5e8, 2.5e8]), cluster(method="gmm", history=[-9.0, -8.0])]
    svg = draw.convergence([cluster(), *others], "kmeans", "c")
    assert "seed 0 ends at 3 × 10⁸, seed 1 ends at 2.5 × 10⁸" in svg
    assert any(text.startswith("inertia, × 1") for text in texts(svg))
    mixture = draw.convergence(others, "gmm", "c")
    assert "seed 0 ends at \N{MINUS SIGN}8" in mixture
    assert "log-likelihood per image, nats" in texts(mixture)


@pytest.mark.parametrize("history", [[], [4.0]])
def test_no_curve_from_fewer_than_two_iterations(history):
    assert draw.convergence([cluster(history=history)], "kmeans", "c") is None


def test_inertia_of_zero_still_draws():
    assert "inertia" in texts(draw.convergence([cluster(history=[0.0, 0.0])], "kmeans", "c"))


@pytest.mark.parametrize("k", [2, 40, 41, 3000])
def test_shares_of_few_and_of_many_clusters(k):
    shares = np.arange(1, k + 1) / np.arange(1, k + 1).sum()
    svg = draw.cluster_shares(cluster(shares=shares.tolist()), "shares")
    assert f"Shares of {k} clusters, from {draw.percent(shares[-1])} down to" in svg
    assert draw.cluster_shares(cluster(shares=[]), "shares") is None


def bars(svg, colour):
    """Areas (x, height above the axis) of the filled stairs in one colour: its outline's points."""
    path = re.search(rf'd="([^"]+)"[^>]*style="fill: var\(--{colour}\)', svg)
    return path and np.array(re.findall(r"[ML] ([\d.]+) ([\d.]+)", path[1]), float)


def score(cut, **changes):
    edges, shares = [0.0, 1.0, 2.0, 3.0, 4.0], [0.1, 0.4, 0.3, 0.2]
    return {"row": "lcs-km", "seed": 0, "edges": edges, "shares": shares, "cut": cut} | changes


@pytest.mark.parametrize(("cut", "below"), [(2.0, 0.5), (1.5, 0.375), (3.9, 0.975), (9.0, 1.0)])
def test_what_lies_below_the_cut_is_coloured_up_to_it(cut, below):
    svg = draw.score_histogram(score(cut), "score")
    pool, chosen = bars(svg, "pool"), bars(svg, "boundary")
    widths = [np.ptp(part[:, 0]) for part in (chosen, pool)]
    assert widths[0] / widths[1] == pytest.approx(below, abs=1e-3)
    assert f"cut {cut:g}" in texts(svg)


def test_a_cut_below_every_score_colours_nothing():
    svg = draw.score_histogram(score(-3.0), "score")
    assert bars(svg, "boundary") is None
    assert "cut \N{MINUS SIGN}3" in texts(svg)


def test_a_histogram_without_cut_or_bins():
    assert "cut" not in draw.score_histogram(score(None), "score")
    assert draw.score_histogram(score(None, edges=[], shares=[]), "score") is None
