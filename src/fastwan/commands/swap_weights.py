"""The command ``swap-weights``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fastwan.commands.early import require_bundle, require_checkpoint, require_output
from fastwan.commands.names import BundleFolder, Name
from fastwan.commands.options import example, force_option, json_option, lora_option
from fastwan.commands.running import report_errors, shown_progress
from fastwan.config import MODELS
from fastwan.console import one_line, print_json, tell
from fastwan.failures import require_address_space
from fastwan.install import require


@click.command("swap-weights", epilog=example("swap-weights bundle --checkpoint other -o swapped"))
@click.argument("bundle", type=BundleFolder())
@click.option("--checkpoint", required=True, help="Folder, transformer file or Hugging Face id.")
@click.option("--revision", help="Branch, tag or commit on the hub, as owner/name@revision.")
@click.option("--taehv", type=click.Path(path_type=Path), help="Weight file of the decoder.")
@click.option("--model", type=Name(list(MODELS)), help="Default: from the checkpoint.")
@lora_option
@click.option("--no-cache", is_flag=True, help="Build every engine anew that holds weights.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="BUNDLE")
@force_option
@json_option
@report_errors
def swap_weights(as_json: bool, no_cache: bool, **options: Any) -> None:
    """Make a bundle of another checkpoint by the plans of BUNDLE, which was built --weights data.

    It is the one that build-engine would make of that checkpoint, in less time.
    """
    require_bundle(options["bundle"])
    require_checkpoint(options["checkpoint"])
    read = (Path(options["checkpoint"]), options["bundle"])
    require_output(options["output"], "bundle", *read, force=options["force"])
    require("build")
    require_address_space()
    from fastwan.parallel import collector_paused

    with collector_paused():
        from fastwan.bundle import open_bundle
        from fastwan.quality.inspection import SwapReport
        from fastwan.schema import BundleFacts
        from fastwan.swap import SwapSpec
        from fastwan.swap import swap_weights as swap

    spec = SwapSpec(use_cache=not no_cache, **options)
    manifest = swap(spec, shown_progress())
    given = sum(bool(engine.constants) for engine in manifest.engines.values())
    report = SwapReport(
        bundle=BundleFacts.of(open_bundle(spec.output)),
        seconds=manifest.build.seconds,
        peak_rss_bytes=manifest.build.peak_rss_bytes,
        stages=manifest.build.stages,
        taken=manifest.build.cached,
        given=given,
    )
    if as_json:
        print_json(report)
        return
    tell(
        one_line(
            f"{spec.output}: weights of {spec.checkpoint} for {given} of {len(manifest.engines)} "
            f"engines as they were, {report.seconds:.1f} s (measured)"
        )
    )
