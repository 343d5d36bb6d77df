"""The command ``comfyui``."""

from __future__ import annotations

from pathlib import Path

import click

from fastwan.commands.options import example, json_option
from fastwan.commands.running import report_errors
from fastwan.console import one_line, print_json, say, tell


@click.command("comfyui", epilog=example("comfyui --install ComfyUI"))
@click.option(
    "--install",
    "folder",
    type=click.Path(path_type=Path),
    required=True,
    metavar="COMFYUI",
    help="ComfyUI's folder, the one with custom_nodes.",
)
@json_option
@report_errors
def comfyui(folder: Path, as_json: bool) -> None:
    """Put nodes that play bundles into ComfyUI."""
    from fastwan.comfyui.install import install

    report = install(folder)
    if as_json:
        print_json(report)
        return
    tell(one_line(report.custom_node))
    say(f"bundles belong into {report.models}; ComfyUI finds the nodes when it is started again")
