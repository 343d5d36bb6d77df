"""What a report page holds, whatever it is shown as."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Tone = Literal["good", "bad", "plain"]
"""How a verdict or a row is shown: passed, failed, or nothing was judged."""


@dataclass(frozen=True)
class Table:
    """Rows of text.

    Attributes:
        numbers: columns that hold numbers, aligned to the right.
        tones: of each row; all plain if empty.
        folded: shown when it is asked for only; the title says what it holds.
    """

    titles: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: frozenset[int] = frozenset()
    tones: Sequence[Tone] = ()
    folded: str = ""


@dataclass(frozen=True)
class Chart:
    """A drawing as SVG, with the same figures as a table for who cannot see it.

    Attributes:
        svg: one ``<svg>`` element whose colours are CSS variables of the page.
        label: what it shows, in a sentence.
    """

    svg: str
    label: str
    table: Table


@dataclass(frozen=True)
class Picture:
    """A frame.

    Attributes:
        uri: the image itself, as a ``data:`` URI.
    """

    uri: str
    caption: str


@dataclass(frozen=True)
class Pictures:
    """Frames side by side."""

    pictures: Sequence[Picture]


Block = str | Table | Chart | Pictures
"""A paragraph is a string."""


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Document:
    """A page.

    Attributes:
        command: that made it, e.g. ``verify``.
        verdict: one line, first on the page.
        facts: what the report is of, as name and value.
    """

    command: str
    tone: Tone
    verdict: str
    facts: Sequence[tuple[str, str]]
    sections: Sequence[Section] = field(default_factory=list)
