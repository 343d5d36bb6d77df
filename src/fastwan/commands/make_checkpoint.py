"""The command ``make-checkpoint``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fastwan.commands.early import require_output
from fastwan.commands.names import Name
from fastwan.commands.options import example, force_option, json_option
from fastwan.commands.running import report_errors, shown_progress
from fastwan.console import one_line, print_json, tell
from fastwan.failures import require_address_space
from fastwan.install import require


@click.command("make-checkpoint", epilog=example("make-checkpoint --size tiny checkpoint"))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--size", type=Name(["tiny", "1.3b"]), required=True)
@click.option(
    "--seed", type=click.IntRange(0, (1 << 64) - 1), default=0, show_default=True, metavar="N"
)
@click.option(
    "--text-encoder/--no-text-encoder",
    default=None,
    help="With a UMT5 encoder; by default in tiny only (at 1.3b it has 5.7 B parameters).",
)
@force_option
@json_option
@report_errors
def make_checkpoint(
    output: Path, size: Any, seed: int, text_encoder: bool | None, force: bool, as_json: bool
) -> None:
    """Write synthetic weights in the published file formats to OUTPUT."""
    require_output(output, "checkpoint", force=force, option="OUTPUT")
    require("build")
    require_address_space()
    from fastwan.export.checkpoint import synthetic

    report = synthetic.make_checkpoint(
        output,
        size=size,
        seed=seed,
        text_encoder=text_encoder,
        force=force,
        progress=shown_progress(),
    )
    if as_json:
        print_json(report)
    else:
        size_mb = report.bytes / 1e6
        tell(one_line(f"{output}: {report.parameters:,} parameters, {size_mb:,.1f} MB"))
