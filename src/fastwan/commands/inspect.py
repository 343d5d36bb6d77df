"""The command ``inspect``."""

from __future__ import annotations

from pathlib import Path

import click

from fastwan.commands.early import require_bundle
from fastwan.commands.names import BundleFolder
from fastwan.commands.options import example, json_option, report_option, shape_option
from fastwan.commands.running import report_errors
from fastwan.console import print_json, print_rich
from fastwan.install import require


@click.command("inspect", epilog=example("inspect bundle --report report"))
@click.argument("bundle", type=BundleFolder())
@report_option
@shape_option
@click.option(
    "--graph",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Draw the kernels and what they hand on, with one block unfolded.",
)
@click.option("--block", type=click.IntRange(0), help="The one. Default: one like most others.")
@json_option
@report_errors
def inspect(
    bundle: Path,
    report: Path | None,
    graph: Path | None,
    block: int | None,
    shape: str | None,
    as_json: bool,
) -> None:
    """Show the kernels, dtypes, linears, bytes and predicted time of BUNDLE."""
    require_bundle(bundle)
    if report is not None or graph is not None:
        require("report")
    from fastwan.bundle import open_bundle
    from fastwan.quality.report import inspect_bundle
    from fastwan.quality.report_text import render

    opened = open_bundle(bundle, shape=shape)
    made = inspect_bundle(opened)
    if report is not None or graph is not None:
        from fastwan.quality.pages.inspect_page import write_inspection

        write_inspection(opened, made, report, graph, block)
    if as_json:
        print_json(made)
    else:
        print_rich(render(made))
