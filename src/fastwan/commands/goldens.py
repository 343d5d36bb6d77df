"""The command ``goldens``."""

from __future__ import annotations

from pathlib import Path

import click

from fastwan.commands.early import require_bundle, require_output
from fastwan.commands.names import BundleFolder, Name
from fastwan.commands.options import example, force_option, json_option, shape_option
from fastwan.commands.running import report_errors, shown_progress
from fastwan.console import print_json, tell
from fastwan.errors import BadInput
from fastwan.failures import require_address_space
from fastwan.install import require


@click.command("goldens", epilog=example("goldens make bundle goldens"))
@click.argument("action", type=Name(["make", "check"]))
@click.argument("bundle", type=BundleFolder())
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--prompts", type=click.Path(path_type=Path),
    help="For make: a seed, a blank and a prompt on each line. Default: two videos.",
)  # fmt: skip
@click.option(
    "--limit", type=float, default=0.0, show_default=True,
    help="For check: largest relative L2 difference; 0: equal bytes.",
)  # fmt: skip
@force_option
@shape_option
@json_option
@report_errors
def goldens(
    action: str,
    bundle: Path,
    folder: Path,
    prompts: Path | None,
    limit: float,
    force: bool,
    shape: str | None,
    as_json: bool,
) -> int:
    """Keep what the CPU reference makes of an accuracy set in FOLDER, or hold BUNDLE against it.

    check exits 4 if a video differs, and names its first step that does; 2 if the goldens are of
    other weights or another sampler.
    """
    require_bundle(bundle)
    if action == "make":
        require_output(folder, "goldens", bundle, force=force)
    elif prompts is not None or force:
        raise BadInput("an option of goldens make", where="--prompts" if prompts else "--force")
    require("build")
    require_address_space()
    from fastwan.quality.findings_text import render
    from fastwan.quality.goldens.run import check_goldens, make_goldens

    if action == "make":
        report = make_goldens(
            bundle, folder, prompts=prompts, force=force, shape=shape, progress=shown_progress()
        )
    else:
        report = check_goldens(bundle, folder, limit=limit, shape=shape, progress=shown_progress())
    if as_json:
        print_json(report)
    else:
        tell(render(report.findings, all_of_them=True))
    return report.exit_code
