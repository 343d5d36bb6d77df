"""The command ``generate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fastwan.commands.early import require_bundle
from fastwan.commands.options import (
    force_option,
    guidance_options,
    json_option,
    seed_option,
    videos,
)
from fastwan.commands.running import report_errors, shown_progress
from fastwan.config import SAMPLERS
from fastwan.console import one_line, print_json, tell, typed_text
from fastwan.failures import require_address_space


@click.command("generate")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("prompt", nargs=-1, required=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="VIDEO")
@click.option("--frames", type=click.Path(path_type=Path), help="Folder for PNG frames.")
@seed_option
@guidance_options
@click.option(
    "--device",
    type=click.Choice(["auto", "cuda", "cpu", "emulated"]),
    default="auto",
    show_default=True,
    help="emulated: a Blackwell GPU's numbers on a Hopper GPU, and not its speed.",
)
@click.option("--sampler", type=click.Choice(list(SAMPLERS)), help="Default: the bundle's.")
@videos("--warmup", 0, 0, "Unmeasured videos before.")
@videos("--repeat", 1, 1, "Measured videos.")
@click.option(
    "--prompt-cache", type=click.Path(path_type=Path), help="Folder that keeps prompt embeddings."
)
@force_option
@json_option
@report_errors
def generate(
    bundle: Path,
    prompt: tuple[str, ...],
    output: Path,
    frames: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Make a video of PROMPT with BUNDLE; several prompts number their outputs."""
    require_bundle(bundle)
    require_address_space()
    from fastwan.runtime.generate import generate as run

    prompts = [typed_text(each, "prompt") for each in prompt]
    result = run(bundle, prompts, output, frames_dir=frames, progress=shown_progress(), **options)
    if as_json:
        print_json(result)
        return
    for video in result.videos:
        path = video.video or video.frames_dir
        tell(one_line(f"video: {path} ({video.frame_count} frames, {result.device})"))
        if video.first_frame:
            tell(one_line(f"frame: {video.first_frame}"))
