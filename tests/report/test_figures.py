"""The report's charts: what they compute is right, what they return can stand inline in HTML."""

import re

import numpy as np
import pytest
from sklearn.decomposition import PCA

from ssat_ray.report import figures as draw


def test_the_principal_plane_is_that_of_scikit_learn():
    points = np.random.default_rng(0).normal(size=(300, 6)) * np.arange(1, 7) + 3
    found, shares = draw.principal_plane(points)
    oracle = PCA(n_components=2, svd_solver="full").fit(points)
    np.testing.assert_allclose(np.abs(found), np.abs(oracle.transform(points)), atol=1e-9)
    np.testing.assert_allclose(shares, oracle.explained_variance_ratio_, atol=1e-12)


def test_mean_history_stops_at_the_last_step_that_all_seeds_reached():
    history = [[[10, 1.0, 50.0], [20, 2.0, 60.0]], [[10, 1.0, 54.0]]]
    steps, means = draw.mean_history(history)
    assert steps.tolist() == [10]
    assert means.tolist() == [52.0]
    assert len(draw.mean_history([[], []])[0]) == 0


def test_the_cut_in_the_histogram_is_the_highest_boundary_score(figure_data):
    data = figure_data()
    for method in data.scores:
        cut = data.scores[method][data.reasons[method] == draw.BOUNDARY].max()
        svg = draw.score_histogram(data, method)
        assert f"cut {cut:.3g}".replace("-", "\N{MINUS SIGN}") in svg


def test_histograms_count_every_finite_value():
    sample = np.concatenate([np.random.default_rng(0).normal(size=5000), [1e6, -1e6, np.inf]])
    bins = draw._bins(sample, sample[:100] + 5)
    assert draw._counts(sample, bins).sum() == 5002
    assert draw._counts(sample, bins, density=True).sum() * (bins[1] - bins[0]) == pytest.approx(1)


def test_equal_scores_still_draw(figure_data):
    data = figure_data()
    data.scores["pcs"][:] = 0.5
    assert "cut 0.5" in draw.score_histogram(data, "pcs")


def test_svgs_are_inline_named_and_follow_the_colour_scheme(figure_data, results):
    data, rows = figure_data(), results()["rows"]
    images = {row["row"]: float(300 + row["images"]["pool"]) for row in rows}
    svgs = [
        draw.projection(data, "lcs-km")[0],
        draw.score_histogram(data, "pcs"),
        draw.forest(rows, "random"),
        draw.validation_curves(rows),
        draw.accuracy_against(rows, images, "training images"),
        draw.two_densities(data.neighbour_generated, data.neighbour_real, "distance", "near"),
    ]
    ids = [name for svg in svgs for name in re.findall(r'\bid="([^"]+)"', svg)]
    assert len(ids) == len(set(ids))
    for svg in svgs:
        assert svg.startswith('<svg class="chart" role="img" aria-label="')
        assert "var(--muted)" in svg
        assert not re.search(r"#0000[0-9a-f]{2}\b|http|xmlns|mathdefault|<metadata", svg)
        used = re.findall(r'(?:url\(|href=")#([^")]+)', svg)
        assert set(used) <= set(re.findall(r'\bid="([^"]+)"', svg))


def test_charts_name_every_row_and_hide_what_is_missing(results):
    rows = results()["rows"]
    total = {row["row"]: row["seconds"]["total"] for row in rows}
    svg = draw.accuracy_against(rows, total, "total time, s")
    assert all(f">{row['row']}</text>" in svg for row in rows)
    for row in rows:
        row["history"], row["differences"] = [], {}
    assert draw.validation_curves(rows) is None
    assert draw.forest(rows, "random") is None


def test_a_hostile_row_name_is_escaped(results):
    rows = results()["rows"][:2]
    rows[1]["row"] = "<script>&"
    svg = draw.accuracy_against(rows, {"none": 1.0, "<script>&": 2.0}, "time")
    assert "&lt;script&gt;&amp;" in svg
    assert "<script" not in svg
