"""Charts through matplotlib, as SVG that follows the page's light or dark colours.

matplotlib draws with colours that stand for CSS variables; in the SVG they are replaced by these.
Text stays text, in the page's font.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

INK, FAINT, PAPER = "#010101", "#020202", "#030303"
"""Text and axes, grid lines, and what lies behind marks."""
SERIES = ("#110000", "#120000", "#130000", "#140000", "#150000", "#160000")
"""Colours of what is told apart, in order."""
GOOD, BAD = "#210000", "#220000"

_VARIABLES = {
    INK: "--ink", FAINT: "--faint", PAPER: "--paper", GOOD: "--good", BAD: "--bad",
    **{color: f"--series-{index}" for index, color in enumerate(SERIES, 1)},
}  # fmt: skip

KIND_COLORS = {
    "gemm": SERIES[0], "attention": SERIES[1], "convolution": SERIES[2], "own": SERIES[3],
    "memory": SERIES[4],
}  # fmt: skip
KIND_NAMES = {
    "gemm": "GEMM", "attention": "attention", "convolution": "convolution",
    "own": "glue, our kernels", "memory": "glue, the builder's",
}  # fmt: skip
"""Kinds of `fastwan.quality.kernels.Kernel` as charts have them."""

_STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "fastwan", "font.family": "sans-serif",
    "font.size": 10, "text.color": INK, "axes.edgecolor": FAINT, "axes.labelcolor": INK,
    "axes.titlecolor": INK, "xtick.color": INK, "ytick.color": INK, "grid.color": FAINT,
    "axes.grid": True, "axes.axisbelow": True, "axes.spines.top": False,
    "axes.spines.right": False, "axes.facecolor": "none", "figure.facecolor": "none",
    "legend.frameon": False, "figure.constrained_layout.use": True, "xtick.major.size": 0,
    "ytick.major.size": 0, "xtick.minor.size": 0, "ytick.minor.size": 0,
}  # fmt: skip

WIDTH = 8.4
"""Of a chart in inches; the page scales it."""


class Drawing:
    """A figure that becomes SVG when its body ends.

    Attributes:
        axes: matplotlib's axes to draw on.
        svg: the drawing, once the body of `drawing` has ended.
    """

    def __init__(self, axes: Any) -> None:
        self.axes = axes
        self.svg = ""


@contextmanager
def drawing(height: float, columns: int = 1) -> Iterator[Drawing]:
    """Yield axes to draw on.

    Args:
        height: in inches.
        columns: axes side by side; `Drawing.axes` is then an array.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, height))
        drawn = Drawing(figure.subplots(1, columns))
        yield drawn
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    drawn.svg = _themed(stream.getvalue())


def _themed(text: str) -> str:
    """The ``<svg>`` element alone, its colours as variables, its size left to the page."""
    svg = text[text.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"""(<svg[^>]*?) width="[^"]*"|(<svg[^>]*?) height="[^"]*\"""", r"\1\2", svg)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg)
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    return re.sub(r"font: ([^;\"]*?)'?sans-serif'?", r"font: \1var(--font)", svg)
