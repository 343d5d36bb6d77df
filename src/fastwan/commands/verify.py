"""The command ``verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fastwan.commands.early import require_bundle, require_checkpoint
from fastwan.commands.names import BundleFolder, Name
from fastwan.commands.options import example, json_option, lora_option, report_option, shape_option
from fastwan.commands.running import report_errors, shown_progress
from fastwan.console import print_json, print_rich, tell
from fastwan.errors import BadInput
from fastwan.failures import require_address_space
from fastwan.install import require
from fastwan.quality.pages.folder import report_folder


@click.command("verify", epilog=example("verify bundle"))
@click.argument("bundle", type=BundleFolder())
@click.option(
    "--checkpoint", help="Compare the weights with this checkpoint, not with recorded digests."
)
@click.option(
    "--device",
    type=Name(["cpu", "emulated"]),
    default="cpu",
    show_default=True,
    help="emulated: the full size too, on a Hopper GPU.",
)
@click.option(
    "--taehv", type=click.Path(path_type=Path), help="Weight file of the decoder of --checkpoint."
)
@lora_option
@click.option(
    "--check", "checks", multiple=True, metavar="NAME", help="Run only this one. May be repeated."
)
@click.option(
    "--list-checks", is_flag=True, help="Print the names of the checks of BUNDLE and run none."
)
@shape_option
@click.option("--picture", type=click.Path(path_type=Path), help="PNG of what FP4 changes.")
@report_option
@json_option
@report_errors
def verify(
    bundle: Path, report: Path | None, list_checks: bool, as_json: bool, **options: Any
) -> int:
    """Hold BUNDLE against the reference; exit 4 if a limit is passed."""
    from fastwan.quality.verify_options import check_options

    require_bundle(bundle)
    place = None if report is None else report_folder(report, [bundle])
    given = ("device", "checkpoint", "taehv", "lora", "picture", "checks")
    check_options(**{name: options[name] for name in given})
    if options["checkpoint"] is not None:
        require_checkpoint(options["checkpoint"])
    if list_checks and as_json:
        raise BadInput("names are printed as lines alone", where="--json", fix="leave it")
    require("build")
    require_address_space()
    if list_checks:
        from fastwan.quality.verify.run import list_checks as names

        tell("\n".join(names(bundle)))
        return 0
    from fastwan.quality.verify.report import render
    from fastwan.quality.verify.run import verify_bundle

    videos: list[Any] = []
    made = verify_bundle(bundle, progress=shown_progress(), videos=videos, **options)
    if place is not None:
        from fastwan.quality.pages.verify_page import verify_findings, verify_page
        from fastwan.quality.pages.writing import write_report

        write_report(place, verify_page(made, videos), made, verify_findings(made))
    if as_json:
        print_json(made)
    else:
        print_rich(render(made))
    return 0 if made.passed else 4
