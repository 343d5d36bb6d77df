"""The command ``plan``."""

from __future__ import annotations

from typing import Any

import click

from fastwan.commands.options import example, json_option, of_table
from fastwan.commands.running import report_errors
from fastwan.config import (
    ATTENTIONS,
    DEFAULT_MODEL,
    FUSIONS,
    MODELS,
    RECIPES,
    SAMPLERS,
    TARGETS,
)
from fastwan.console import print_json, print_rich


@click.command("plan", epilog=example("plan --target 5090 --shape 832x480x81"))
@of_table("--model", MODELS, default=DEFAULT_MODEL)
@of_table("--target", TARGETS, multiple=True, help="Default: all that run the model.")
@of_table("--attention", ATTENTIONS, help="Default: the model's own.")
@of_table("--fusion", ["auto", *FUSIONS], default="auto", help="auto: the fastest on record.")
@of_table("--sampler", SAMPLERS, help="Default: the model's first.")
@click.option("--shape", "shapes", multiple=True, metavar="WxHxF", help="Default: a table of them.")
@of_table("--text-encoder-recipe", [*RECIPES, "none"], default="bf16")
@json_option
@report_errors
def plan(as_json: bool, shapes: tuple[str, ...], target: tuple[str, ...], **options: Any) -> None:
    """Predict time and memory of a model by shape, and what does not fit; builds nothing."""
    from fastwan.quality.plan_text import PlanText
    from fastwan.quality.video_plan import PlanSpec, plan_shapes
    from fastwan.shapes import parse_shape

    report = plan_shapes(
        PlanSpec(targets=target, shapes=tuple(map(parse_shape, shapes)), **options)
    )
    if as_json:
        print_json(report)
    else:
        print_rich(PlanText(report))
