"""The command ``inspect``."""

from __future__ import annotations

from pathlib import Path

import click

from fastwan.commands.options import json_option
from fastwan.commands.running import report_errors
from fastwan.console import print_json, print_rich


@click.command("inspect")
@click.argument("bundle", type=click.Path(path_type=Path))
@json_option
@report_errors
def inspect(bundle: Path, as_json: bool) -> None:
    """Show the kernels, dtypes, linears, bytes and predicted time of BUNDLE."""
    from fastwan.bundle import open_bundle
    from fastwan.quality.report import inspect_bundle
    from fastwan.quality.report_text import render

    report = inspect_bundle(open_bundle(bundle))
    if as_json:
        print_json(report)
    else:
        print_rich(render(report))
