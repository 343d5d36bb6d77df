"""Rows of tables by name: what a name stands for, or a refusal that lists the names there are."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TypeVar

from fastwan.errors import BadInput

T = TypeVar("T")


def known(names: Collection[str], name: str, kind: str = "name") -> str:
    """`name`, if it is one of `names`.

    Args:
        kind: the word for it in the message.

    Raises:
        BadInput: it is not; the message lists those there are.
    """
    if not isinstance(name, str) or name not in names:
        raise BadInput(f"unknown {kind} {name!r:.80}", fix="one of " + ", ".join(names))
    return name


def lookup(table: Mapping[str, T], name: str, kind: str = "name") -> T:
    """Row `name` of a table.

    Raises:
        BadInput: no such row, see `known`.
    """
    return table[known(table, name, kind)]


def require_listed(table: Collection[str], names: Collection[str], kind: str, where: str) -> None:
    """Refuse a list that is empty or has a name that is no row of a table.

    Args:
        kind: the word for a row in the message.
        where: the option.

    Raises:
        BadInput: names the first such name.
    """
    unknown = [name for name in names if name not in table]
    if unknown or not names:
        raise BadInput(
            f"unknown {kind} {unknown[0]!r}" if unknown else f"no {kind}",
            where=where,
            fix="a list of " + ", ".join(table),
        )


def implementation(
    names: Collection[str], objects: Mapping[str, T], name: str, kind: str = "name"
) -> T:
    """The object that does what a name of a table stands for.

    Args:
        names: the table of names.
        objects: the table of objects, by name.

    Raises:
        BadInput: no such name, see `known`, or a name that no object implements.
    """
    known(names, name, kind)
    if name not in objects:
        raise BadInput(
            f"nothing implements the {kind} {name!r}", fix="one of " + ", ".join(objects)
        )
    return objects[name]


def described(table: Mapping[str, str]) -> str:
    """The rows of a table as help."""
    return "; ".join(f"{name}: {text}" for name, text in table.items()) + "."
