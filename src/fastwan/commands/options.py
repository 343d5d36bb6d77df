"""Options that several commands have, or that belong together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def of_table(option: str, names: Iterable[str], **settings: Any) -> Callable[[F], F]:
    """An option that takes the names of a table."""
    return click.option(option, type=click.Choice(list(names)), show_default=True, **settings)


force_option = click.option(
    "--force", is_flag=True, help="Replace the output whatever it holds; says what it deletes."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
report_option = click.option(
    "--report",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Write a page to look at, and it as Markdown, JUnit XML and JSON.",
)
lora_option = click.option(
    "--lora",
    multiple=True,
    metavar="FILE[:SCALE]",
    help="LoRA in the transformer's weights, under diffusers' or Wan's names; may be repeated.",
)


def guidance_options(command: F) -> F:
    """Options of classifier-free guidance."""
    command = click.option(
        "--guidance-scale", type=float, help="Default: the sampler's; 1 is no guidance."
    )(command)
    return click.option(
        "--negative-prompt", help="What a guided sampler leads away from. Default: the empty text."
    )(command)
