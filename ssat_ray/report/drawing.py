"""What all figures share: colours, style, empty charts, inline SVG and PNG data URIs.

Colours are CSS variables, so that one drawing serves the light and the dark colour scheme:
matplotlib gets placeholder colours, which `to_svg` replaces.
"""

import base64
import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib.image
import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ssat_ray.config import ROWS

Float = npt.NDArray[np.floating[Any]]
Int = npt.NDArray[np.integer[Any]]
UInt8 = npt.NDArray[np.uint8]

INK, MUTED, RULE, CHOSEN, POOL, REAL, PAPER = (f"#00000{i}" for i in range(1, 8))
ROW_COLOURS: dict[str, str] = {row: f"#0000{16 + i:02x}" for i, row in enumerate(ROWS)}
STAGE_COLOURS = tuple(f"#0000{48 + i:02x}" for i in range(12))
"""The colours of stages in bars and bands, --s0 to --s11."""
_CSS = {
    **{colour: f"var(--row-{row})" for row, colour in ROW_COLOURS.items()},
    **{colour: f"var(--s{i})" for i, colour in enumerate(STAGE_COLOURS)},
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    CHOSEN: "var(--boundary)",
    POOL: "var(--pool)",
    REAL: "var(--real)",
    PAPER: "var(--paper)",
}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ssat_ray",
    "text.parse_math": False,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.labelcolor": MUTED,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "axes.unicode_minus": True,
}


def chart(size: tuple[float, float] = (5.0, 3.1)) -> tuple[Figure, Axes]:
    """An empty chart; at its natural size a unit of its SVG is one CSS pixel (72 to the inch)."""
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.add_subplot()


def to_svg(figure: Figure, name: str, alt: str) -> Markup:
    """Inline SVG without identifiers that could clash, outer references or fixed colours."""
    buffer = io.StringIO()
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=metadata, dpi=180)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(url\(|href=")#', rf"\g<1>#{name}-", svg)
    svg = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", svg)
    svg = re.sub(r"#0000[0-9a-f]{2}\b", lambda match: _CSS.get(match[0], match[0]), svg)
    view_box = re.search(r'viewBox="[^"]*"', svg)
    label = f'<svg class="chart" role="img" aria-label="{escape(alt)}" {view_box[0]}>'  # type: ignore[index]
    return Markup(re.sub(r"<svg[^>]*>", lambda _: label, svg, count=1))


def png_uri(image: UInt8) -> str:
    """A data URI of one image, (H, W, C) uint8 with C = 1, 3 or 4 (with opacity)."""
    if image.shape[-1] == 1:
        image = np.repeat(image, 3, axis=-1)
    buffer = io.BytesIO()
    matplotlib.image.imsave(buffer, np.ascontiguousarray(image), format="png", metadata={})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def row_colour(row: str) -> str:
    """The placeholder colour of a row of the method's tables; ink for unknown ones."""
    return ROW_COLOURS.get(row, INK)


def thin(axes: Axes, x_label: str, y_label: str) -> None:
    """Name both axes; a thin grid behind the data, short ticks."""
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=3, which="both")


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """Positions in [0, 1], moved apart to at least `gap` (less if they cannot all fit)."""
    order = np.argsort(positions, kind="stable")
    gap = min(gap, 1.0 / max(len(positions) - 1, 1))
    placed = np.asarray(positions, dtype=float)[order]
    for i in range(1, len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + gap)
    placed = np.minimum(placed, 1.0 - gap * np.arange(len(placed))[::-1])
    placed = np.maximum(placed, gap * np.arange(len(placed)))
    result = np.empty_like(placed)
    result[order] = placed
    return [float(value) for value in result]
