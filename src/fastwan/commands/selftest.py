"""The command ``selftest``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fastwan.commands.early import require_bundle, require_output
from fastwan.commands.names import BundleFolder, Name
from fastwan.commands.options import example, force_option, json_option, shape_option
from fastwan.commands.running import report_errors, shown_progress
from fastwan.console import print_json, tell
from fastwan.failures import require_address_space
from fastwan.install import require


@click.command("selftest", epilog=example("selftest bundle --device host"))
@click.argument("bundle", type=BundleFolder())
@click.option(
    "-o", "--output", default="selftest", type=click.Path(path_type=Path), metavar="FOLDER"
)
@click.option(
    "--device",
    type=Name(["auto", "cuda", "emulated", "host"]),
    default="auto",
    show_default=True,
    help="auto: the GPU, or host, what can be proven without one.",
)
@force_option
@shape_option
@json_option
@report_errors
def selftest(bundle: Path, output: Path, as_json: bool, **options: Any) -> int:
    """Go from the driver to a video with BUNDLE in stages, up to the first that fails.

    Exits 3 if it stops because the environment lacks something, 4 if a result is wrong.
    """
    require_bundle(bundle)
    require_output(output, "selftest", bundle, force=options["force"])
    require("build")
    require_address_space()
    from fastwan.quality.selftest.markdown import render
    from fastwan.quality.selftest.stages import selftest as run

    report = run(bundle, output, progress=shown_progress(), **options)
    if as_json:
        print_json(report)
    else:
        tell(render(report))
    return report.exit_code
