"""What figures share: labels stay apart and inside, images keep their pixels, SVG stands inline."""

import base64
import io
import re

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread

from ssat_ray.report import drawing as draw


@given(st.lists(st.floats(-0.5, 1.5), min_size=1, max_size=9), st.floats(0.01, 0.3))
def test_spread_keeps_the_order_and_the_gap_and_stays_inside(positions, gap):
    placed = np.array(draw.spread(positions, gap))
    order = np.argsort(positions, kind="stable")
    gap = min(gap, 1 / max(len(positions) - 1, 1))
    assert np.all(np.diff(placed[order]) >= gap - 1e-9)
    assert placed.min() >= -1e-9
    assert placed.max() <= 1 + 1e-9


def test_spread_leaves_distant_labels_where_they_are():
    assert draw.spread([0.9, 0.1, 0.5], 0.1) == [0.9, 0.1, 0.5]


@pytest.mark.parametrize("channels", [1, 3])
def test_png_uri_returns_the_same_pixels(channels):
    image = np.random.default_rng(1).integers(0, 256, (5, 7, channels)).astype(np.uint8)
    uri = draw.png_uri(image)
    assert uri.startswith("data:image/png;base64,")
    decoded = imread(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    np.testing.assert_array_equal(
        np.rint(decoded[..., :3] * 255), np.broadcast_to(image, (5, 7, 3))
    )


def test_every_placeholder_colour_becomes_a_variable_of_the_page():
    colours = [draw.CHOSEN, draw.POOL, *draw.STAGE_COLOURS, *draw.ROW_COLOURS.values()]
    with matplotlib.rc_context(draw.STYLE):
        figure, axes = draw.chart()
        for y, colour in enumerate(colours):
            axes.plot([0, 1], [y, y], color=colour)
        svg = draw.to_svg(figure, "colours", "lines")
    assert not re.search(r"#0000[0-9a-f]{2}\b", svg)
    shown = set(re.findall(r"var\(--([\w-]+)\)", svg))
    assert {"boundary", "pool", "row-none", "row-full", "s0", "s11"} <= shown
    assert len(shown) >= len(colours)


def test_the_alternative_text_is_escaped():
    svg = draw.to_svg(draw.chart()[0], "x", '<b>"&')
    assert 'aria-label="&lt;b&gt;&#34;&amp;"' in svg
