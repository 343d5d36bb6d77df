"""A document as Markdown, for the summary of a CI job."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fastwan.quality.findings_text import cell
from fastwan.quality.pages.document import Block, Chart, Document, Pictures, Table

_MARKS = {"good": "✅", "bad": "❌", "plain": "ℹ️"}
_MOST_ROWS = 40


def render(document: Document) -> str:
    """The page: charts as tables, and no frames."""
    lines = [
        f"# {_MARKS[document.tone]} {document.command}: {cell(document.verdict)}",
        "",
        *_table(Table(("", ""), list(document.facts))),
    ]
    for section in document.sections:
        found = [line for block in section.blocks for line in _block(block)]
        if found:
            lines += ["", f"## {cell(section.title)}", *found]
    return "\n".join(lines) + "\n"


def _block(block: Block) -> Iterator[str]:
    match block:
        case str():
            yield from ("", cell(block))
        case Table():
            yield from _folded(block.folded, block) if block.folded else ("", *_table(block))
        case Chart():
            yield from _folded(block.label, block.table)
        case Pictures():
            return


def _folded(title: str, table: Table) -> Sequence[str]:
    return ["", f"<details><summary>{cell(title)}</summary>", "", *_table(table), "", "</details>"]


def _table(table: Table) -> Iterator[str]:
    yield f"| {' | '.join(map(cell, table.titles))} |"
    marks = ("---:" if index in table.numbers else "---" for index in range(len(table.titles)))
    yield f"|{'|'.join(marks)}|"
    for row in table.rows[:_MOST_ROWS]:
        yield f"| {' | '.join(map(cell, row))} |"
    if len(table.rows) > _MOST_ROWS:
        blank = [""] * (len(table.titles) - 1)
        yield f"| {' | '.join([f'and {len(table.rows) - _MOST_ROWS} more', *blank])} |"
