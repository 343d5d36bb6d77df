"""The command ``compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fastwan.commands.early import require_bundle, require_output
from fastwan.commands.names import BundleFolder, Name
from fastwan.commands.options import (
    example,
    force_option,
    json_option,
    report_option,
    shape_option,
)
from fastwan.commands.running import report_errors, shown_progress
from fastwan.config import SAMPLERS
from fastwan.console import print_json, print_rich, typed_text
from fastwan.failures import require_address_space
from fastwan.install import require
from fastwan.quality.pages.folder import report_folder


@click.command("compare", epilog=example("compare bundle other --by-block"))
@click.argument("a", type=BundleFolder())
@click.argument("b", type=BundleFolder())
@click.option("--static", is_flag=True, help="Compare what the engines are made of alone.")
@click.option(
    "--device",
    type=Name(["cpu", "emulated", "cuda"]),
    default="cpu",
    show_default=True,
    help="cpu: at a small size; the others: at the bundles' own, on a Hopper or a Blackwell GPU.",
)
@click.option(
    "--sampler",
    type=Name(list(SAMPLERS)),
    help="Default: the bundles', of two the one with fewer steps.",
)
@click.option("--prompt", "prompts", multiple=True, help="May be repeated. Default: one sentence.")
@click.option(
    "--seed",
    "seeds",
    type=click.IntRange(0, (1 << 64) - 1),
    multiple=True,
    help="May be repeated. Default: 1024.",
)
@click.option("--by-block", is_flag=True, help="Find the first block and tensor that part.")
@click.option(
    "--limit", type=float, help="Relative L2 difference of a step or block that fails: exit 4."
)
@click.option(
    "--tensors",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Keep the tensors of --by-block as files of Polygraphy.",
)
@report_option
@force_option
@shape_option
@json_option
@report_errors
def compare(
    a: Path,
    b: Path,
    prompts: tuple[str, ...],
    report: Path | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Show what differs between bundles A and B: kernels, bytes, numbers, frames.

    Exits 4 if a difference is beyond --limit.
    """
    require_bundle(a, b)
    place = None if report is None else report_folder(report, [a, b])
    require_output(options["tensors"], "tensors", a, b, force=options["force"], option="--tensors")
    if not options["static"]:
        require("build")
        require_address_space()
    elif report is not None:
        require("report")
    from fastwan.quality.compare.run import compare_bundles
    from fastwan.quality.compare.text import render

    texts = [typed_text(each, "--prompt") for each in prompts]
    compared = compare_bundles(a, b, prompts=texts, progress=shown_progress(), **options)
    made = compared.report
    if place is not None:
        from fastwan.quality.pages.compare_page import compare_page
        from fastwan.quality.pages.writing import write_report

        page = compare_page(made, compared.kernels, compared.videos)
        write_report(place, page, made, made.findings)
    if as_json:
        print_json(made)
    else:
        print_rich(render(made))
    return 0 if made.passed else 4
