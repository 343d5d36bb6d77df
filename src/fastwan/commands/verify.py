"""The command ``verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fastwan.commands.options import json_option, lora_option
from fastwan.commands.running import report_errors, shown_progress
from fastwan.console import print_json, print_rich
from fastwan.failures import require_address_space


@click.command("verify")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--checkpoint", help="Compare the weights with this checkpoint, not with recorded digests."
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "emulated"]),
    default="cpu",
    show_default=True,
    help="emulated: the full size too, on a Hopper GPU.",
)
@lora_option
@click.option("--picture", type=click.Path(path_type=Path), help="PNG of what FP4 changes.")
@json_option
@report_errors
def verify(bundle: Path, as_json: bool, **options: Any) -> int:
    """Hold BUNDLE against the reference; exit 4 if a limit is passed."""
    require_address_space()
    from fastwan.quality.verify.report import render
    from fastwan.quality.verify.run import verify_bundle

    report = verify_bundle(bundle, progress=shown_progress(), **options)
    if as_json:
        print_json(report)
    else:
        print_rich(render(report))
    return 0 if report.passed else 4
