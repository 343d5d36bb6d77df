"""The command ``verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fastwan.commands.early import require_bundle, require_checkpoint, require_output
from fastwan.commands.options import json_option, lora_option, report_option
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
@report_option
@json_option
@report_errors
def verify(bundle: Path, report: Path | None, as_json: bool, **options: Any) -> int:
    """Hold BUNDLE against the reference; exit 4 if a limit is passed."""
    from fastwan.quality.verify_options import check_options

    require_bundle(bundle)
    require_output(report, "report", bundle, option="--report")
    check_options(options["device"], options["checkpoint"], options["lora"], options["picture"])
    if options["checkpoint"] is not None:
        require_checkpoint(options["checkpoint"])
    require_address_space()
    from fastwan.quality.verify.report import render
    from fastwan.quality.verify.run import verify_bundle

    place = None
    videos: list[Any] = []
    if report is not None:
        from fastwan.quality.pages.writing import report_folder, write_report

        place = report_folder(report, [bundle])
    made = verify_bundle(bundle, progress=shown_progress(), videos=videos, **options)
    if place is not None:
        from fastwan.quality.pages.verify_page import verify_findings, verify_page

        write_report(place, verify_page(made, videos), made, verify_findings(made))
    if as_json:
        print_json(made)
    else:
        print_rich(render(made))
    return 0 if made.passed else 4
