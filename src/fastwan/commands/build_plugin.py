"""The command ``build-plugin``."""

from __future__ import annotations

from pathlib import Path

import click

from fastwan.commands.options import example, force_option, json_option
from fastwan.commands.running import report_errors, shown_progress
from fastwan.console import one_line, print_json, say, tell


@click.command("build-plugin", epilog=example("build-plugin -o build/plugins"))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder for the library.")
@click.option("--emulated", is_flag=True, help="Emulate FP4 on compute capability 9.0 instead.")
@force_option
@json_option
@report_errors
def build_plugin(output: Path | None, as_json: bool, **options: bool) -> None:
    """Compile libfastwan_plugins.so, the FP4 attention, with CMake and nvcc."""
    from fastwan.plugins import build

    report = build.plugin_report(build.build_plugin(output, progress=shown_progress(), **options))
    if as_json:
        print_json(report)
        return
    tell(one_line(report.library))
    if report.build["tensorrt"] == "none" and not options["emulated"]:
        say(
            "without the TensorRT plugin: no headers were found. The tensorrt-rtx backend does not "
            "need it; for tensorrt set TENSORRT_ROOT and build again"
        )
