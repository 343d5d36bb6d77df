"""Options that several commands have, or that belong together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click

from fastwan.commands.names import Name

F = TypeVar("F", bound=Callable[..., Any])


def of_table(option: str, names: Iterable[str], **settings: Any) -> Callable[[F], F]:
    """An option that takes the names of a table, in any case; of a target its number will do."""
    kind = Name(names, ends=option == "--target")
    return click.option(option, type=kind, show_default=True, **settings)


def example(*lines: str) -> str:
    """The end of a command's help: what can be typed as it stands."""
    return "\b\nFor example:\n" + "\n".join(f"  fastwan-export {line}" for line in lines)


MAX_VIDEOS = 100_000
"""Largest number of videos that can be asked for at once."""


def videos(option: str, least: int, default: int, text: str) -> Callable[[F], F]:
    """An option that takes a number of videos."""
    return click.option(
        option,
        type=click.IntRange(least, MAX_VIDEOS),
        default=default,
        show_default=True,
        metavar="N",
        help=text,
    )


seed_option = click.option(
    "--seed",
    type=click.IntRange(0, (1 << 64) - 1),
    default=1024,
    show_default=True,
    metavar="N",
    help="Of the noise.",
)
force_option = click.option(
    "--force", is_flag=True, help="Replace the output whatever it holds; says what it deletes."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
shape_option = click.option(
    "--shape", metavar="WxHxF", help="Of a bundle with several. Default: its first."
)
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
