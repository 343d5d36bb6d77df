"""The command ``build-engine``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fastwan.commands.early import (
    parse_components,
    require_checkpoint,
    require_output,
    require_size,
)
from fastwan.commands.names import Components, Name
from fastwan.commands.options import example, force_option, json_option, lora_option, of_table
from fastwan.commands.running import report_errors, shown_progress
from fastwan.config import (
    ACTIVATIONS,
    ATTENTIONS,
    BACKENDS,
    COMPONENTS,
    FUSION_CHOICES,
    MODELS,
    RECIPES,
    SAMPLERS,
    TARGETS,
    WEIGHTS,
)
from fastwan.console import one_line, print_json, say, tell
from fastwan.errors import BadInput
from fastwan.failures import require_address_space
from fastwan.install import require
from fastwan.shapes import parse_shapes
from fastwan.tables import described


@click.command("build-engine", epilog=example("build-engine --checkpoint checkpoint -o bundle"))
@click.option("--checkpoint", required=True, help="Folder, transformer file or Hugging Face id.")
@click.option("--revision", help="Branch, tag or commit on the hub, as owner/name@revision.")
@click.option("--taehv", type=click.Path(path_type=Path), help="Weight file of the decoder.")
@click.option("--model", type=Name(list(MODELS)), help="Default: from the checkpoint.")
@of_table("--target", TARGETS, default="rtx5090")
@of_table("--backend", BACKENDS, default="tensorrt-rtx", help=described(BACKENDS))
@of_table("--attention", ATTENTIONS, help=f"Default: the model's own. {described(ATTENTIONS)}")
@of_table("--fusion", FUSION_CHOICES, default="auto", help=described(FUSION_CHOICES))
@of_table("--weights", WEIGHTS, help=f"Default: data with fusion all. {described(WEIGHTS)}")
@of_table("--sampler", ["auto", *SAMPLERS], default="auto")
@click.option("--height", type=int, help="Pixels, a multiple of 16.")
@click.option("--width", type=int, help="Pixels, a multiple of 16.")
@click.option("--num-frames", type=int, help="Frames, 4n+1.")
@click.option(
    "--shape", "shapes", multiple=True, metavar="WxHxF",
    help="In place of these three; may be repeated, for a bundle of several shapes.",
)  # fmt: skip
@click.option("--components", type=Components(), default=",".join(COMPONENTS), show_default=True)
@click.option(
    "--text-encoder-recipe",
    type=Name(list(RECIPES)),
    default="bf16",
    show_default=True,
    help=(
        f"{described(RECIPES)} nvfp4 and fp8 need about half the memory; activations were not "
        "tuned for them."
    ),
)
@of_table("--activation-scale", ACTIVATIONS, help=f"Of FP8. {described(ACTIVATIONS)}")
@click.option("--calibration", type=click.Path(path_type=Path), help="Prompts, one a line.")
@lora_option
@click.option("--no-cache", is_flag=True, help="Build every engine anew.")
@click.option(
    "--cache-key", is_flag=True, help="Print the key to keep this build's cache under; no build."
)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="BUNDLE")
@force_option
@json_option
@report_errors
def build_engine(
    as_json: bool,
    components: str,
    no_cache: bool,
    cache_key: bool,
    shapes: tuple[str, ...],
    **options: Any,
) -> None:
    """Build an engine bundle from a checkpoint."""
    if cache_key and as_json:
        raise BadInput("the key is printed as a line alone", where="--json", fix="leave it")
    parts = parse_components(components)
    require_size(options["height"], options["width"], options["num_frames"])
    asked = parse_shapes(shapes)
    require_checkpoint(options["checkpoint"])
    if not cache_key:
        read = Path(options["checkpoint"])
        require_output(options["output"], "bundle", read, force=options["force"])
    require("build")
    require_address_space()
    from fastwan.parallel import collector_paused

    with collector_paused():
        from fastwan.build import BuildSpec
        from fastwan.build_shapes import build_bundle_of_shapes
        from fastwan.bundle import open_bundle
        from fastwan.quality.report import build_report, inspect_bundle
        from fastwan.quality.report_text import shapes_text

    spec = BuildSpec(components=parts, use_cache=not no_cache, shapes=asked, **options)
    if cache_key:
        from fastwan.cache_key import cache_key as key_of

        tell(key_of(spec))
        return
    manifest = build_bundle_of_shapes(spec, shown_progress())
    opened = open_bundle(spec.output)
    inspected = inspect_bundle(opened)
    for each in (inspected, *(inspect_bundle(opened.at(other.shape)) for other in manifest.shapes)):
        if each.note and each.device_bytes is not None:
            say(each.note)
    report = build_report(inspected, manifest)
    if as_json:
        print_json(report)
        return
    linears = sum(part.linears for part in report.components.values())
    held = sum(part.quantised_linears for part in report.components.values())
    kept = f"{held} of {linears} targeted linears in their format" if linears else "not quantised"
    line = (
        f"{spec.output}: {len(manifest.engines)} engines for {manifest.target}, "
        f"{kept}, {manifest.build.seconds:.1f} s, "
        f"peak {manifest.build.peak_rss_bytes / 1e9:.2f} GB (measured)"
    )
    tell(one_line(line))
    if report.shapes:
        note = "" if manifest.weights == "data" else "; engines hold their weights once a shape"
        tell(one_line(shapes_text(report.shapes) + note))
