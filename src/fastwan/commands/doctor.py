"""The command ``doctor``."""

from __future__ import annotations

from pathlib import Path

import click

from fastwan.commands.options import example, json_option
from fastwan.commands.running import report_errors
from fastwan.console import print_json, print_rich


@click.command("doctor", epilog=example("doctor"))
@click.option("--load", is_flag=True, help="Import torch, ModelOpt and onnxscript, too: seconds.")
@click.option(
    "--comfyui",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="ComfyUI's folder: tell of it and of the nodes in it, too.",
)
@json_option
@report_errors
def doctor(load: bool, comfyui: Path | None, as_json: bool) -> None:
    """Tell what this machine can do, and what to install for the rest."""
    from fastwan.doctor import DoctorReport, diagnose, render

    findings = diagnose(load)
    if comfyui is not None:
        from fastwan.comfyui.found import findings as comfyui_findings

        findings += comfyui_findings(comfyui)
    if as_json:
        print_json(DoctorReport(findings=tuple(findings)))
    else:
        print_rich(render(findings))
