"""Types of what is typed: names of tables, whatever their case, and folders of bundles."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from fastwan.config import COMPONENTS

_SHORTEST = 4
"""Characters of a name's end that may stand for it, as 5090 for rtx5090."""


class Name(click.Choice[str]):
    """A name of a table: in any case, with or without blanks and hyphens."""

    def __init__(self, names: Iterable[str], ends: bool = False) -> None:
        super().__init__(list(names), case_sensitive=False)
        self._ends = ends

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name of the table; with `ends` its end will do, where no other name has it."""
        names = [str(each) for each in self.choices]
        if value in names:
            return str(value)
        typed = _folded(str(value))
        found = [name for name in names if _folded(name) == typed]
        if not found and self._ends and len(typed) >= _SHORTEST:
            found = [name for name in names if _folded(name).endswith(typed)]
        return found[0] if len(found) == 1 else super().convert(value, param, ctx)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        """The names as the table has them."""
        shown = "|".join(self.choices)
        return f"{{{shown}}}" if param.param_type_name == "argument" else f"[{shown}]"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Names as the table has them, whatever the case of what is typed."""
        start = incomplete.casefold()
        return [CompletionItem(each) for each in self.choices if each.casefold().startswith(start)]


def _folded(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).casefold()


class BundleFolder(click.Path):
    """A folder; a shell completes those that hold bundles, and those on the way to them."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Folders that begin as what is typed; one with a manifest is said to be a bundle."""
        parent, start = os.path.split(incomplete)
        try:
            entries = sorted(os.scandir(parent or "."), key=lambda each: each.name)
        except OSError:
            return []
        return [
            CompletionItem(
                os.path.join(parent, each.name),
                help="bundle" if os.path.isfile(os.path.join(each.path, "manifest.json")) else None,
            )
            for each in entries
            if each.is_dir()
            and each.name.startswith(start)
            and (start or not each.name.startswith("."))
        ]


class Components(click.ParamType[str]):
    """Parts of a model, joined by commas."""

    name = "components"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The parts that are not in the list yet, behind its last comma."""
        *before, start = incomplete.split(",")
        rest = [name for name in COMPONENTS if name not in before and name.startswith(start)]
        return [CompletionItem(",".join([*before, name])) for name in rest]
