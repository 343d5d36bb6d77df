"""The command ``generate``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from fastwan.commands.early import require_bundle
from fastwan.commands.names import BundleFolder, Name
from fastwan.commands.options import (
    example,
    force_option,
    guidance_options,
    json_option,
    seed_option,
    videos,
)
from fastwan.commands.running import report_errors, shown_progress
from fastwan.config import SAMPLERS
from fastwan.console import print_json, tell, typed_text
from fastwan.errors import BadInput
from fastwan.failures import require_address_space


@click.command("generate", epilog=example('generate bundle "A red fox in the snow" -o fox.mp4'))
@click.argument("bundle", type=BundleFolder())
@click.argument("prompt", nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    metavar="PATH",
    help="x.mp4, a folder for PNG images, or folder/name_%04d.png.",
)
@click.option("--frames", type=click.Path(path_type=Path), help="Folder for PNG frames.")
@click.option("--width", type=int, help="Pixels. Of a bundle with several shapes, which one.")
@click.option("--height", type=int, help="Likewise.")
@click.option("--num-frames", type=int, help="Likewise.")
@seed_option
@guidance_options
@click.option(
    "--device",
    type=Name(["auto", "cuda", "cpu", "emulated"]),
    default="auto",
    show_default=True,
    help="emulated: a Blackwell GPU's numbers on a Hopper GPU, and not its speed.",
)
@click.option("--sampler", type=Name(list(SAMPLERS)), help="Default: the bundle's.")
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
    _refuse_mixed_up(bundle, prompt)
    prompts = [typed_text(each, "prompt") for each in prompt]
    _check(bundle, prompts, output, frames, options)
    require_bundle(bundle)
    require_address_space("build" if options["device"] == "emulated" else "play")
    from fastwan.runtime.generate import generate as run
    from fastwan.runtime.generate_text import render

    result = run(bundle, prompts, output, frames_dir=frames, progress=shown_progress(), **options)
    if as_json:
        print_json(result)
    else:
        tell(render(result))


def _check(
    bundle: Path, prompts: list[str], output: Path, frames: Path | None, options: dict[str, Any]
) -> None:
    """What `fastwan.runtime.generate.generate` checks first, without its imports."""
    from fastwan.runtime.model.prompt import check_prompt
    from fastwan.runtime.video import check_outputs, places_of

    for each in prompts:
        check_prompt(each)
    cache = options["prompt_cache"]
    check_outputs(
        [place for places in places_of(output, frames, len(prompts)) for place in places],
        force=options["force"],
        inputs=[bundle] if cache is None else [bundle, cache],
    )


def _refuse_mixed_up(bundle: Path, prompts: tuple[str, ...]) -> None:
    """Tell the words of a prompt without quotes, and arguments in the wrong order.

    Raises:
        BadInput: likewise.
    """
    for each in prompts:
        if os.path.isfile(os.path.join(each, "manifest.json")) and not os.path.isdir(bundle):
            raise BadInput(
                f"{each} is a bundle and {str(bundle)!r} is none",
                where="BUNDLE PROMPT",
                fix="name the bundle first",
            )
    words = len(prompts) > 1 and not any(" " in each.strip() for each in prompts)
    if words and not all(each.endswith(".") for each in prompts):
        joined = " ".join(prompts)
        raise BadInput(
            f"{len(prompts)} prompts of one word each",
            where="PROMPT",
            fix=f'quote a prompt, "{joined}"; end each with a full stop if they are several',
        )
