"""The command ``gate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastwan.commands.early import require_bundle
from fastwan.commands.names import BundleFolder, Name
from fastwan.commands.options import example, json_option, report_option, shape_option, videos
from fastwan.commands.running import report_errors, shown_progress
from fastwan.console import print_json, tell
from fastwan.failures import require_address_space
from fastwan.install import require
from fastwan.quality.pages.folder import report_folder

if TYPE_CHECKING:
    from fastwan.quality.findings import GateReport


@click.command("gate", epilog=example("gate bundle --against baseline.json"))
@click.argument("bundle", type=BundleFolder())
@click.option(
    "--against", type=click.Path(path_type=Path), required=True, metavar="BASELINE",
    help="File of the baseline.",
)  # fmt: skip
@click.option("--update-baseline", "update", is_flag=True, help="Write it from this run.")
@click.option(
    "--stage", "stages", default="", metavar="NAMES",
    help="Of static, verify, schedule, predicted, times, goldens, joined by commas. Default: all.",
)  # fmt: skip
@click.option(
    "--limit", "limits", multiple=True, metavar="STAGE[.CHECK]=REL[:ABS]",
    help="How much worse a figure may be: the larger of a share and an amount. May be repeated.",
)  # fmt: skip
@click.option("--goldens", type=click.Path(path_type=Path), help="Folder of goldens make.")
@click.option(
    "--golden-limit", type=float, default=0.0, show_default=True,
    help="Largest relative L2 difference to them; 0: equal bytes.",
)  # fmt: skip
@click.option(
    "--history", type=click.Path(path_type=Path), help="File that keeps the times of every run."
)
@click.option(
    "--device",
    type=Name(["auto", "cuda", "emulated"]),
    default="auto",
    show_default=True,
    help="Of times; emulated: a Hopper GPU, of verify's full size, too.",
)
@videos("--runs", 1, 5, "Measured videos.")
@videos("--warmup", 0, 2, "Videos before them.")
@report_option
@shape_option
@json_option
@report_errors
def gate(
    bundle: Path, against: Path, stages: str, report: Path | None, as_json: bool, **options: Any
) -> int:
    """Hold BUNDLE against a baseline, in stages.

    Exits 4 if a result is wrong, 5 if a figure is worse than the baseline's by more than its
    limit, 2 if there is nothing sound to compare with.
    """
    require_bundle(bundle)
    place = None if report is None else report_folder(report, [bundle])
    require("build")
    require_address_space()
    from fastwan.quality.gate.run import gate as run

    names = [name.strip() for name in stages.split(",") if name.strip()]
    made = run(bundle, against, stages=names, progress=shown_progress(), **options)
    try:
        if place is not None:
            from fastwan.quality.pages.gate_page import write_gate

            write_gate(place, made, bundle, options["history"], options["shape"])
    finally:  # what was found is told even if the report cannot be written
        _show(made, as_json)
    return made.exit_code


def _show(made: GateReport, as_json: bool) -> None:
    from fastwan.quality.findings_text import render

    if as_json:
        print_json(made)
        return
    tell(render(made.findings))
    if made.rewritten:
        tell(f"baseline written: {made.baseline}")
    elif made.advice:
        tell(f"to write the baseline anew: {made.advice}")
