"""The charts of report pages: bars, stacked bars, lines, and a roofline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastwan.quality.pages.document import Chart, Table
from fastwan.quality.pages.drawing import BAD, GOOD, INK, PAPER, SERIES, drawing


@dataclass(frozen=True)
class Bar:
    """A bar of a chart.

    Attributes:
        color: one of `fastwan.quality.pages.drawing`.
        shown: what stands at its end.
    """

    name: str
    value: float
    color: str
    shown: str


def bars(
    items: Sequence[Bar], unit: str, label: str, legend: Mapping[str, str] | None = None
) -> Chart:
    """Horizontal bars, the first one on top.

    Args:
        unit: of the values.
        legend: names of colours.
    """
    with drawing(0.6 + 0.26 * len(items) + (0.3 if legend else 0)) as drawn:
        axes = drawn.axes
        places = range(len(items))
        axes.barh(places, [b.value for b in items], color=[b.color for b in items], height=0.7)
        for place, item in zip(places, items, strict=True):
            axes.annotate(
                item.shown, (item.value, place), xytext=(4, 0), textcoords="offset points",
                va="center", fontsize=9,
            )  # fmt: skip
        axes.set_yticks(places, [shortened(item.name) for item in items])
        axes.set_ylim(len(items) - 0.4, -0.6)
        axes.set_xlim(0, 1.25 * max((item.value for item in items), default=1) or 1)
        axes.set_xlabel(unit)
        axes.grid(visible=False, axis="y")
        _legend(axes, legend)
    table = Table(("", unit), [(item.name, item.shown) for item in items], frozenset({1}))
    return Chart(drawn.svg, label, table)


def limits(items: Sequence[tuple[str, float | None, float | None]], label: str) -> Chart:
    """Values as shares of their limits, with the limit as a line.

    Args:
        items: name, value and limit; without both finite there is no bar.
    """
    known = [(n, v, top) for n, v, top in items if v is not None and top is not None]
    shares = [value / limit if limit else float(value > 0) * 2 for _, value, limit in known]
    with drawing(0.7 + 0.26 * len(known)) as drawn:
        axes = drawn.axes
        colors = [GOOD if share <= 1 else BAD for share in shares]
        places = range(len(known))
        axes.barh(places, [min(share, 1.9) for share in shares], color=colors, height=0.7)
        for place, share in zip(places, shares, strict=True):
            axes.annotate(
                f"{share:.0%}", (min(share, 1.9), place), xytext=(4, 0),
                textcoords="offset points", va="center", fontsize=9,
            )  # fmt: skip
        axes.axvline(1, color=INK, linewidth=1.2)
        axes.set_yticks(places, [shortened(name) for name, *_ in known])
        axes.set_ylim(len(known) - 0.4, -0.6)
        axes.set_xlim(0, 2.1 if max(shares, default=0) > 1 else 1.15)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.set_xlabel("share of the limit")
        axes.grid(visible=False, axis="y")
    rows = [(name, _number(value), _number(limit)) for name, value, limit in items]
    return Chart(drawn.svg, label, Table(("", "value", "limit"), rows, frozenset({1, 2})))


def changes(items: Sequence[Bar], label: str, legend: Mapping[str, str]) -> Chart:
    """Shares by which figures changed, to the left of zero or to the right.

    Args:
        legend: names of colours; those that no bar has are left out.
    """
    with drawing(0.9 + 0.26 * len(items)) as drawn:
        axes = drawn.axes
        farthest = max((abs(item.value) for item in items), default=0.0) or 1.0
        places = range(len(items))
        axes.barh(places, [b.value for b in items], color=[b.color for b in items], height=0.7)
        for place, item in zip(places, items, strict=True):
            axes.annotate(
                item.shown, (max(item.value, 0), place), xytext=(4, 0),
                textcoords="offset points", va="center", fontsize=9,
            )  # fmt: skip
        axes.axvline(0, color=INK, linewidth=1)
        axes.set_yticks(places, [shortened(item.name) for item in items])
        axes.set_ylim(len(items) - 0.4, -0.6)
        axes.set_xlim(-1.1 * farthest, 2.6 * farthest)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:+.1%}" if value else "0")
        axes.set_xlabel("change")
        axes.grid(visible=False, axis="y")
        used = {item.color for item in items}
        _legend(axes, {color: name for color, name in legend.items() if color in used})
    table = Table(("", "change"), [(item.name, item.shown) for item in items], frozenset({1}))
    return Chart(drawn.svg, label, table)


@dataclass(frozen=True)
class Line:
    """A series over the values of the horizontal axis; None leaves a gap."""

    name: str
    values: Sequence[float | None]


def grouped(
    places: Sequence[str], series: Sequence[Line], unit: str, label: str, *, across: str = ""
) -> Chart:
    """Vertical bars of several series beside each other, e.g. before and after.

    Args:
        across: what the places are, where their names do not say it.
    """
    with drawing(2.8) as drawn:
        axes = drawn.axes
        width = 0.8 / len(series)
        for index, line in enumerate(series):
            at = [place + (index + 0.5) * width - 0.4 for place in range(len(places))]
            values = [math.nan if v is None else v for v in line.values]
            axes.bar(at, values, width * 0.92, color=SERIES[index], label=line.name)
        _across(axes, places, across)
        axes.set_ylabel(unit)
        _series_legend(axes, len(series))
    return Chart(drawn.svg, label, _series_table(places, series, across))


def lines(
    places: Sequence[str],
    series: Sequence[Line],
    unit: str,
    label: str,
    *,
    across: str = "",
    limit: float | None = None,
) -> Chart:
    """Lines with a mark at each value, from zero up.

    Args:
        across: what the places are, where their names do not say it.
        limit: drawn as a dashed line.
    """
    with drawing(2.8) as drawn:
        axes = drawn.axes
        for index, line in enumerate(series):
            values = [math.nan if v is None else v for v in line.values]
            axes.plot(
                range(len(places)), values, color=SERIES[index], label=line.name, marker="o",
                markersize=5, markeredgecolor=PAPER, linewidth=1.8,
            )  # fmt: skip
        if limit is not None:
            axes.axhline(limit, color=BAD, linewidth=1.2, linestyle="--", label="limit")
        _across(axes, places, across)
        axes.set_ylabel(unit)
        axes.set_ylim(bottom=0)
        _series_legend(axes, len(series) + (limit is not None))
    return Chart(drawn.svg, label, _series_table(places, series, across))


@dataclass(frozen=True)
class Point:
    """A kernel of a roofline.

    Attributes:
        intensity: operations a byte.
        rate: operations a second.
    """

    name: str
    intensity: float
    rate: float
    color: str


def roofline(
    points: Sequence[Point],
    bytes_per_second: float,
    peaks: Mapping[str, float],
    label: str,
    legend: Mapping[str, str],
) -> Chart:
    """Operations a second over operations a byte, under what memory and arithmetic allow.

    Args:
        peaks: operations a second by number format.
    """
    with drawing(3.8) as drawn:
        axes = drawn.axes
        corners = [peak / bytes_per_second for peak in peaks.values()]
        left = min([p.intensity for p in points], default=1) / 2
        right = max([*corners, *(p.intensity for p in points)]) * 4
        top = max(peaks.values())
        axes.plot(
            [left, top / bytes_per_second], [left * bytes_per_second, top], color=INK, linewidth=1.2
        )
        for name, peak in peaks.items():
            axes.plot([peak / bytes_per_second, right], [peak, peak], color=INK, linewidth=1.2)
            axes.annotate(
                name, (right, peak), xytext=(0, 3), textcoords="offset points", ha="right",
                fontsize=9,
            )  # fmt: skip
        for point in points:
            axes.plot(
                point.intensity, point.rate, "o", color=point.color, markersize=6,
                markeredgecolor=PAPER,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_yscale("log")
        lowest = min([left * bytes_per_second, *(point.rate for point in points)])
        axes.set_ylim(lowest / 2, top * 3)
        axes.set_xlabel("operations a byte")
        axes.set_ylabel("operations a second")
        _legend(axes, legend)
    rows = [(p.name, f"{p.intensity:,.1f}", f"{p.rate / 1e12:,.2f}") for p in points]
    titles = ("kernel", "operations a byte", "tera-operations a second")
    return Chart(drawn.svg, label, Table(titles, rows, frozenset({1, 2})))


def shortened(name: str, most: int = 34) -> str:
    """A name that fits beside a bar, its end kept."""
    return name if len(name) <= most else f"{name[: most // 2]}…{name[-most // 2 + 1 :]}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.4g}"


def _across(axes: Any, places: Sequence[str], name: str) -> None:
    """Names along the horizontal axis: upright where they are long together; few stay narrow."""
    upright = {"rotation": 90, "fontsize": 8} if sum(map(len, places)) > 110 else {}
    axes.set_xticks(range(len(places)), places, **upright)
    beside = 0.6 + max(0, 6 - len(places)) / 2
    axes.set_xlim(-beside, len(places) - 1 + beside)
    axes.set_xlabel(name)
    axes.grid(visible=False, axis="x")


def _legend(axes: Any, names: Mapping[str, str] | None) -> None:
    """Names of colours above the axes."""
    from matplotlib.patches import Patch

    if names:
        patches = [Patch(color=color, label=name) for color, name in names.items()]
        _above(axes, patches, len(names))


def _series_legend(axes: Any, count: int) -> None:
    if count > 1:
        _above(axes, None, count)


def _above(axes: Any, handles: object, columns: int) -> None:
    axes.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=min(columns, 5),
        borderaxespad=0.2, handlelength=1, columnspacing=1.2, fontsize=9,
    )  # fmt: skip


def _series_table(places: Sequence[str], series: Sequence[Line], across: str) -> Table:
    rows = [
        (place, *(_number(line.values[index]) for line in series))
        for index, place in enumerate(places)
    ]
    titles = (across, *(line.name for line in series))
    return Table(titles, rows, frozenset(range(1, len(series) + 1)))
