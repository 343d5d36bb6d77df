"""Tables for screens of every width: no name is cut, and files and pipes have whole lines."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from fastwan.console import UNBOUNDED, WIDE

if TYPE_CHECKING:
    from rich.box import Box
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table
    from rich.text import Text

_INDENT = "  "


class Lines:
    """Lines of text, folded between words where a terminal has no room for them."""

    def __init__(self, *lines: str) -> None:
        self._lines = lines

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        from rich.text import Text

        yield from _wrapped([Text(line) for line in self._lines], console, options)


class Rows:
    """A table with notes where there is room for it, else the same as lines of text.

    Args:
        table: for a terminal of `WIDE` columns or more in which every word has its room.
        lines: for others, and for files and pipes.
    """

    def __init__(self, table: Table, lines: Sequence[Text]) -> None:
        self._table = table
        self._lines = lines

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        if WIDE <= options.max_width < UNBOUNDED and fitted(self._table, console, options):
            yield self._table
        else:
            yield from _wrapped(self._lines, console, options)


class Grid:
    """A table of short texts where there is room for it, else a line a row.

    A line is ``NAME: COLUMN CELL; COLUMN CELL (LABEL)``: columns go by their titles up to a
    parenthesis, a second line of a title is a unit and stands behind the cell, and a name that is
    indented below another one stands behind that one.

    Args:
        titles: of the columns.
        rows: as many texts each.
        title: above the table.
        names: columns that name a row, from the first one on.
        right: columns whose cells end at one line below each other.
        labelled: the last column says how the figures of a row were got.
        box: of the table, set tight; rich's own where None.
    """

    def __init__(
        self,
        titles: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        title: str = "",
        names: int = 1,
        right: Collection[int] = (),
        labelled: bool = False,
        box: Box | None = None,
    ) -> None:
        self._titles = titles
        self._rows = rows
        self._title = title
        self._names = names
        self._right = right
        self._labelled = labelled
        self._box = box

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        from rich.text import Text

        table = self._table()
        if self._title:
            yield Text(self._title if options.max_width < UNBOUNDED else f"{self._title}:")
        if options.max_width < UNBOUNDED and fitted(table, console, options):
            yield table
        else:
            yield from _wrapped([Text(line) for line in self._lines()], console, options)

    def fits(self, console: Console, options: ConsoleOptions) -> bool:
        """Whether there is room for the table."""
        return fitted(self._table(), console, options)

    def _table(self) -> Table:
        from rich.box import HEAVY_HEAD
        from rich.table import Table
        from rich.text import Text

        plain = self._box is not None
        table = Table(box=self._box or HEAVY_HEAD, pad_edge=not plain, collapse_padding=plain)
        for column, name in enumerate(self._titles):
            table.add_column(Text(name), justify="right" if column in self._right else "left")
        for row in self._rows:
            table.add_row(*map(Text, row))
        return table

    def _lines(self) -> Iterator[str]:
        above = ""
        end = len(self._titles) - self._labelled
        heads = [title.partition("\n") for title in self._titles]
        columns = [(head.partition(" (")[0], unit) for head, _, unit in heads]
        for row in self._rows:
            first = row[0]
            if first.startswith(" "):
                first = f"{above}, {first.strip()}"
            else:
                above = first
            cells = [first, *row[1:]]
            said = [
                " ".join(part for part in (columns[at][0], cells[at], columns[at][1]) if part)
                for at in range(end)
                if cells[at]
            ]
            named = sum(bool(cell) for cell in cells[: self._names])
            label = f" ({row[-1]})" if self._labelled and row[-1] else ""
            yield f"{' '.join(said[:named])}: {'; '.join(said[named:])}{label}"


def _wrapped(
    lines: Sequence[Text], console: Console, options: ConsoleOptions
) -> Iterator[RenderableType]:
    """Lines as they are, or folded between words, what follows indented."""
    from rich.text import Text

    for line in lines:
        if line.cell_len <= options.max_width:
            line.overflow = "fold"
            yield line
            continue
        parts = line.wrap(console, options.max_width - len(_INDENT), overflow="fold")
        for number, part in enumerate(parts):
            part.rstrip()
            yield Text(_INDENT).append_text(part) if number else part


def fitted(table: Table, console: Console, options: ConsoleOptions) -> bool:
    """Give the columns of a table widths in which no word is cut; False where there is no room."""
    from rich.measure import Measurement

    endless = options.update_width(UNBOUNDED)
    spans = [
        [
            Measurement.get(console, endless, cell)
            for cell in (*([column.header] if table.show_header else []), *column.cells)
        ]
        for column in table.columns
    ]
    least = [max((each.minimum for each in span), default=0) for span in spans]
    widths = [max((each.maximum for each in span), default=0) for span in spans]
    between = Measurement.get(console, endless, table).maximum - sum(widths)
    excess = sum(widths) + between - options.max_width
    while excess > 0:
        # The widest column that can give a column of the screen gives it.
        giving = [at for at in range(len(widths)) if widths[at] > least[at]]
        if not giving:
            return False
        widths[max(giving, key=lambda at: widths[at])] -= 1
        excess -= 1
    for column, width in zip(table.columns, widths, strict=True):
        column.width = width
    return True
