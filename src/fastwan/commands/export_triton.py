"""The command ``export-triton``."""

from __future__ import annotations

from pathlib import Path

import click

from fastwan.commands.early import require_bundle, require_output
from fastwan.commands.names import BundleFolder, Name
from fastwan.commands.options import example, force_option, json_option
from fastwan.commands.running import report_errors
from fastwan.console import one_line, print_json, tell


@click.command("export-triton", epilog=example("export-triton bundle -o models"))
@click.argument("bundle", type=BundleFolder())
@click.option(
    "--device", type=Name(["cuda", "cpu", "emulated"]), default="cuda", show_default=True,
    help="As of generate.",
)  # fmt: skip
@click.option("--name", default="fastwan", show_default=True, help="Of the model.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="FOLDER")
@force_option
@json_option
@report_errors
def export_triton(
    bundle: Path, output: Path, name: str, device: str, force: bool, as_json: bool
) -> None:
    """Write a model repository for Triton Inference Server: BUNDLE by its Python backend."""
    require_bundle(bundle)
    require_output(output, "triton", bundle, force=force)
    from fastwan.serve.triton.repository import write_repository

    report = write_repository(bundle, output, name=name, device=device, force=force)
    if as_json:
        print_json(report)
        return
    tell(one_line(f"{output}: model {name}, tritonserver --model-repository {output}"))
