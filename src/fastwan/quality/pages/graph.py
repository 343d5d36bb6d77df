"""The engines of a bundle as a picture: kernel under kernel, with one block unfolded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastwan.errors import BadInput
from fastwan.quality.cost import Cost, total
from fastwan.quality.kernels import Kernel
from fastwan.quality.pages.charts import shortened
from fastwan.quality.pages.document import Chart, Document, Section, Table
from fastwan.quality.pages.drawing import FAINT, INK, KIND_COLORS, KIND_NAMES, PAPER, drawing
from fastwan.quality.pages.parts import facts_of
from fastwan.schema import BundleFacts

_RUNS = {
    "schedule": "once a timestep, when a bundle is loaded",
    "prompt": "once a prompt", "step": "once a step", "latent": "once a latent frame",
}  # fmt: skip
_ROW = 0.29
"""Inches of a row."""


@dataclass(frozen=True)
class Row:
    """A kernel, or several that are folded into one row.

    Attributes:
        kernels: more than one where they are folded.
        detail: number format of one kernel; what is folded.
    """

    title: str
    kind: str
    detail: str
    kernels: tuple[Kernel, ...]
    unfolded: bool = False

    @property
    def cost(self) -> Cost:
        """Of all its kernels, one run."""
        return total(kernel.cost for kernel in self.kernels)


def typical_block(kernels: Sequence[Kernel]) -> int | None:
    """A block that is like most others, the first of them; None without blocks."""
    shapes = _shapes(kernels)
    if not shapes:
        return None
    common, _ = Counter(shapes.values()).most_common(1)[0]
    return next(block for block, shape in shapes.items() if shape == common)


def _shapes(kernels: Sequence[Kernel]) -> dict[int, tuple[tuple[str, str], ...]]:
    """The kernels of each block of a step, without the block's number."""
    shapes: dict[int, list[tuple[str, str]]] = {}
    for kernel in kernels:
        if kernel.block is not None and kernel.runs == "step":
            shapes.setdefault(kernel.block, []).append((kernel.pattern, kernel.dtype))
    return {block: tuple(shape) for block, shape in sorted(shapes.items())}


def rows(kernels: Sequence[Kernel], block: int | None) -> list[Row]:
    """What the picture shows from top to bottom.

    Args:
        block: the one that is unfolded.

    Raises:
        BadInput: the transformer has no such block.
    """
    shapes = _shapes(kernels)
    if block is not None and block not in shapes:
        raise BadInput(f"no block {block}", where="--block", fix=f"0 to {max(shapes, default=-1)}")
    found: list[Row] = []
    for folded in _parts(kernels):
        first = folded[0]
        if first.block is not None and first.block == block and first.runs == "step":
            found += [_single(kernel, unfolded=True) for kernel in folded]
        elif first.runs == "step" and first.block is None:
            found += [_single(kernel) for kernel in folded]
        elif first.runs == "step":
            title, detail = f"block {first.block}", f"{len(folded)} kernels"
            found.append(Row(title, "memory", detail, tuple(folded)))
        else:
            detail = f"{len(folded)} kernels, {_RUNS[first.runs]}"
            title = first.component if first.place == first.component else first.place
            found.append(Row(title, "memory", detail, tuple(folded)))
    return found


def _parts(kernels: Sequence[Kernel]) -> Iterator[list[Kernel]]:
    """Neighbours that are shown together: of a block, of blocks that stay folded, of an engine."""
    part: list[Kernel] = []
    for kernel in kernels:
        if part and _key(part[0]) != _key(kernel):
            yield part
            part = []
        part.append(kernel)
    if part:
        yield part


def _key(kernel: Kernel) -> tuple[object, ...]:
    if kernel.runs != "step":
        return (kernel.runs, kernel.place)
    return (kernel.runs, kernel.block)


def _single(kernel: Kernel, *, unfolded: bool = False) -> Row:
    return Row(kernel.title, kernel.kind, kernel.dtype, (kernel,), unfolded)


def merged(parts: Sequence[Row]) -> list[Row]:
    """Folded blocks that stand next to each other in one row."""
    found: list[Row] = []
    for row in parts:
        before = found[-1] if found else None
        if before is not None and _is_folded_block(before) and _is_folded_block(row):
            both = (*before.kernels, *row.kernels)
            names = sorted({k.block for k in both if k.block is not None})
            title = f"blocks {names[0]} to {names[-1]}"
            found[-1] = Row(title, "memory", f"{len(both)} kernels", both)
        else:
            found.append(row)
    return found


def _is_folded_block(row: Row) -> bool:
    return row.title.startswith("block") and not row.unfolded and len(row.kernels) > 1


def links(shown: Sequence[Row]) -> list[tuple[int, int]]:
    """Rows that hand a tensor to a later one, by index."""
    found: dict[tuple[int, int], None] = {}
    inside: dict[tuple[str, str], int] = {}
    written: dict[str, int] = {}
    for index, row in enumerate(shown):
        for kernel in row.kernels:
            for name in kernel.reads:
                source = inside.get((kernel.place, name), written.get(name))
                if source is not None and source != index:
                    found[(source, index)] = None
            for name in kernel.writes:
                inside[(kernel.place, name)] = written[name] = index
    return list(found)


def graph_chart(kernels: Sequence[Kernel], block: int | None = None) -> Chart:
    """The picture, and the same as a table.

    Args:
        block: the one that is unfolded; by default one that is like most others.

    Raises:
        BadInput: the transformer has no such block.
    """
    block = typical_block(kernels) if block is None else block
    shown = merged(rows(kernels, block))
    with drawing(_ROW * len(shown) + 0.7) as drawn:
        _draw(drawn.axes, shown, block)
    label = "Kernels in the order in which they run, and what they hand to later ones (predicted)"
    titles = ("kernel", "kind", "", "MB", "ms")
    cells = [(r.title, KIND_NAMES[r.kind], r.detail, _mb(r), _ms(r)) for r in shown]
    return Chart(drawn.svg, label, Table(titles, cells, frozenset({3, 4})))


_LEFT, _RIGHT = 5.0, 60.0
"""Where boxes begin and end; the axes are 100 wide."""


def _draw(axes: Any, shown: Sequence[Row], block: int | None) -> None:
    from matplotlib.patches import Patch, Rectangle

    axes.set_axis_off()
    axes.set_xlim(0, 100)
    axes.set_ylim(len(shown) - 0.3, -1.3)
    single = [row.cost.seconds for row in shown if len(row.kernels) == 1]
    longest = max((each for each in single if each == each), default=0.0)
    for x, title in ((76, "MB"), (85, "ms")):
        axes.text(x, -0.8, title, ha="right", va="center", fontsize=8)
    for index, row in enumerate(shown):
        color = KIND_COLORS[row.kind]
        folded = len(row.kernels) > 1
        axes.add_patch(
            Rectangle(
                (_LEFT, index - 0.36), _RIGHT - _LEFT, 0.72, facecolor=PAPER, edgecolor=FAINT,
                linestyle="--" if folded else "-", linewidth=1,
            )
        )  # fmt: skip
        stripe = FAINT if folded else color
        axes.add_patch(Rectangle((_LEFT, index - 0.36), 1.2, 0.72, facecolor=stripe))
        axes.text(_LEFT + 2.2, index, shortened(row.title, 40), va="center", fontsize=8.5)
        axes.text(_RIGHT - 1, index, row.detail, ha="right", va="center", fontsize=8)
        axes.text(76, index, _mb(row), ha="right", va="center", fontsize=8)
        axes.text(85, index, _ms(row), ha="right", va="center", fontsize=8)
        if longest and not folded and row.cost.seconds == row.cost.seconds:
            width = 13 * row.cost.seconds / longest
            axes.add_patch(Rectangle((86.5, index - 0.25), width, 0.5, facecolor=color))
    for source, target in links(shown):
        _link(axes, source, target)
    _bracket(axes, [index for index, row in enumerate(shown) if row.unfolded], block)
    present = {row.kind for row in shown if len(row.kernels) == 1}
    patches = [
        Patch(color=KIND_COLORS[k], label=KIND_NAMES[k]) for k in KIND_COLORS if k in present
    ]
    axes.legend(
        handles=patches, loc="lower left", bbox_to_anchor=(0, 1), ncols=5, handlelength=1,
        columnspacing=1.2, fontsize=9, borderaxespad=0,
    )  # fmt: skip


def _link(axes: Any, source: int, target: int) -> None:
    """A line to the row below, or an arc past the rows between."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    if target == source + 1:
        at = _LEFT + 0.6
        axes.plot([at, at], [source + 0.36, target - 0.36], color=INK, linewidth=1)
        return
    reach = _RIGHT + min(10.5, 1.0 + 1.9 * (target - source) ** 0.5)
    points = [
        (_RIGHT, source + 0.12), (reach, source + 0.12), (reach, target - 0.12),
        (_RIGHT, target - 0.12),
    ]  # fmt: skip
    codes = [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4]
    axes.add_patch(
        PathPatch(Path(points, codes), facecolor="none", edgecolor=INK, linewidth=0.8, alpha=0.7)
    )


def _bracket(axes: Any, places: Sequence[int], block: int | None) -> None:
    if not places:
        return
    top, bottom = min(places) - 0.36, max(places) + 0.36
    axes.plot([3.6, 2.6, 2.6, 3.6], [top, top, bottom, bottom], color=INK, linewidth=1)
    axes.text(
        1.2, (top + bottom) / 2, f"block {block}", rotation=90, ha="center", va="center", fontsize=9
    )


def _mb(row: Row) -> str:
    return f"{row.cost.bytes_moved / 1e6:,.2f}"


def _ms(row: Row) -> str:
    seconds = row.cost.seconds
    return "-" if seconds != seconds else f"{seconds * 1e3:,.4f}"


def graph_page(facts: BundleFacts, kernels: Sequence[Kernel], block: int | None = None) -> Document:
    """The picture as a page.

    Raises:
        BadInput: the transformer has no such block.
    """
    times = total(kernel.cost for kernel in kernels if kernel.runs == "step")
    told = f"{sum(kernel.runs == 'step' for kernel in kernels)} kernels in a denoising step"
    if times.seconds == times.seconds:
        told += f", {times.seconds * 1e3:,.3g} ms (predicted)"
    chart = graph_chart(kernels, block)
    return Document(
        "inspect --graph", "plain", told, facts_of(facts), [Section("Kernels", [chart])]
    )
