"""Attentions, one a file, and the table of them.

To add one: a file beside `native.py`, its object in `IMPLEMENTED`, its name in
`fastwan.config.ATTENTIONS` and in the rows of the targets that run it.
"""

from __future__ import annotations

from fastwan.config import ATTENTIONS
from fastwan.export.attentions.base import EXACT, Attention, Division, Form
from fastwan.export.attentions.fp8 import Fp8
from fastwan.export.attentions.native import Native
from fastwan.export.attentions.sage2 import Sage2
from fastwan.export.attentions.sage3 import Sage3
from fastwan.tables import implementation

IMPLEMENTED: dict[str, Attention] = {
    each.name: each for each in (Sage3(), Native(), Fp8(), Sage2())
}

__all__ = ["EXACT", "IMPLEMENTED", "Attention", "Division", "Form", "find_attention"]


def find_attention(name: str) -> Attention:
    """The attention of that name.

    Raises:
        BadInput: no name of the tables, or one that nothing implements.
    """
    return implementation(ATTENTIONS, IMPLEMENTED, name, "attention")
