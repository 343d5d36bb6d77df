"""The command ``bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fastwan.commands.early import require_bundle
from fastwan.commands.names import BundleFolder, Name
from fastwan.commands.options import example, json_option, shape_option, videos
from fastwan.commands.running import report_errors, shown_progress
from fastwan.config import SAMPLERS
from fastwan.console import print_json, tell, typed_text


@click.command("bench", epilog=example("bench bundle --device null --json"))
@click.argument("bundle", type=BundleFolder())
@click.option(
    "--device",
    type=Name(["auto", "cuda", "emulated", "null"]),
    default="auto",
    show_default=True,
    help="null: exact counts alone, on any machine; emulated: a Hopper GPU.",
)
@videos("--runs", 1, 5, "Measured videos.")
@videos("--warmup", 0, 2, "Videos before them.")
@click.option("--prompt", help="Default: one sentence.")
@click.option("--sampler", type=Name(list(SAMPLERS)), help="Default: the bundle's.")
@click.option("--baseline", type=click.Path(path_type=Path), help="Report of an earlier --json.")
@click.option("--limit", type=float, default=0.05, show_default=True, help="Share beyond it.")
@shape_option
@json_option
@report_errors
def bench(
    bundle: Path,
    prompt: str | None,
    baseline: Path | None,
    limit: float,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure a video's stages on a GPU, or count its work on the recording device.

    Exits 5 if a figure is beyond the baseline's by more than the limit, after printing them all.
    """
    require_bundle(bundle)
    from fastwan.quality.baseline import compare, read_baseline
    from fastwan.quality.bench import DEFAULT_PROMPT
    from fastwan.quality.bench import bench as run
    from fastwan.quality.bench_report import render
    from fastwan.quality.gate.limits import check_share

    text = typed_text(DEFAULT_PROMPT if prompt is None else prompt, "--prompt")
    check_share(limit)
    before = None if baseline is None else read_baseline(baseline)
    report = run(bundle, prompt=text, baseline=before, progress=shown_progress(), **options)
    if as_json:
        print_json(report)
    else:
        tell(render(report))
    if before is not None:
        compare(report, before, limit)
