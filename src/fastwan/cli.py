"""The command line. Every import that takes time stands inside the command that needs it."""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec

import click

from fastwan import __version__
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
)
from fastwan.console import (
    one_line,
    print_json,
    print_rich,
    require_stdout,
    say,
    show_warning,
    tell,
    typed_text,
)
from fastwan.failures import OneLineGroup, explain, fail, require_address_space
from fastwan.options import force_option, guidance_options, json_option, lora_option, of_table
from fastwan.progress import Console, Progress, Quiet
from fastwan.signals import end_cleanly_on_signals
from fastwan.tables import described

P = ParamSpec("P")


class _State:
    """Options of the whole command, set before a subcommand runs."""

    debug = False
    display: Console | None = None


def _report_errors(command: Callable[P, int | None]) -> Callable[P, None]:
    """Turn expected failures into one line and their exit code; a command may return a code."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            try:
                require_stdout()
                code = command(*args, **kwargs) or 0
            finally:
                if _State.display is not None:
                    _State.display.stop()
        except (Exception, KeyboardInterrupt) as error:
            line, code = explain(error)
            if _State.debug and line and isinstance(error, Exception):
                raise
            fail(line, code)
        else:
            # Library threads and their destructors have nothing left to do for a finished command.
            sys.exit(code)

    return run


def _progress() -> Progress:
    if os.environ.get("FASTWAN_QUIET"):
        return Quiet()
    _State.display = Console()
    return _State.display


@click.group(cls=OneLineGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def main(debug: bool) -> None:
    """FastWan text-to-video models as NVFP4 TensorRT engines for NVIDIA Blackwell.

    Exit codes: 0 good, 2 bad input, 3 the environment lacks something, 4 verification failed,
    5 slower than the baseline, 1 unexpected, 130 interrupted, 143 and 129 ended by a signal.
    """
    _State.debug = debug
    warnings.showwarning = show_warning
    end_cleanly_on_signals()


@main.command("make-checkpoint")
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--size", type=click.Choice(["tiny", "1.3b"]), required=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--text-encoder/--no-text-encoder",
    default=None,
    help="With a UMT5 encoder; by default in tiny only (at 1.3b it has 5.7 B parameters).",
)
@force_option
@json_option
@_report_errors
def make_checkpoint(
    output: Path, size: Any, seed: int, text_encoder: bool | None, force: bool, as_json: bool
) -> None:
    """Write synthetic weights in the published file formats to OUTPUT."""
    require_address_space()
    from fastwan.export.checkpoint import synthetic

    report = synthetic.make_checkpoint(
        output,
        size=size,
        seed=seed,
        text_encoder=text_encoder,
        force=force,
        progress=_progress(),
    )
    if as_json:
        print_json(report)
    else:
        size_mb = report.bytes / 1e6
        tell(one_line(f"{output}: {report.parameters:,} parameters, {size_mb:,.1f} MB"))


@main.command("build-engine")
@click.option("--checkpoint", required=True, help="Folder, transformer file or Hugging Face id.")
@click.option("--revision", help="Branch, tag or commit on the hub, as owner/name@revision.")
@click.option("--taehv", type=click.Path(path_type=Path), help="Weight file of the decoder.")
@click.option("--model", type=click.Choice(list(MODELS)), help="Default: from the checkpoint.")
@of_table("--target", TARGETS, default="rtx5090")
@of_table("--backend", BACKENDS, default="tensorrt-rtx", help=described(BACKENDS))
@of_table("--attention", ATTENTIONS, help=f"Default: the model's own. {described(ATTENTIONS)}")
@of_table("--fusion", FUSION_CHOICES, default="auto", help=described(FUSION_CHOICES))
@of_table("--sampler", ["auto", *SAMPLERS], default="auto")
@click.option("--height", type=int, help="Pixels, a multiple of 16.")
@click.option("--width", type=int, help="Pixels, a multiple of 16.")
@click.option("--num-frames", type=int, help="Frames, 4n+1.")
@click.option("--components", default=",".join(COMPONENTS), show_default=True)
@click.option(
    "--text-encoder-recipe",
    type=click.Choice(list(RECIPES)),
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
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="BUNDLE")
@force_option
@json_option
@_report_errors
def build_engine(as_json: bool, components: str, no_cache: bool, **options: Any) -> None:
    """Build an engine bundle from a checkpoint."""
    require_address_space()
    from fastwan.parallel import collector_paused

    with collector_paused():
        from fastwan.build import BuildSpec, parse_components
        from fastwan.build import build_engine as build
        from fastwan.bundle import open_bundle
        from fastwan.quality.report import build_report, inspect_bundle

    spec = BuildSpec(components=parse_components(components), use_cache=not no_cache, **options)
    manifest = build(spec, _progress())
    inspected = inspect_bundle(open_bundle(spec.output))
    if inspected.note and inspected.device_bytes is not None:
        say(inspected.note)
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


@main.command("inspect")
@click.argument("bundle", type=click.Path(path_type=Path))
@json_option
@_report_errors
def inspect(bundle: Path, as_json: bool) -> None:
    """Show the kernels, dtypes, linears, bytes and predicted time of BUNDLE."""
    from fastwan.bundle import open_bundle
    from fastwan.quality.report import inspect_bundle
    from fastwan.quality.report_text import render

    report = inspect_bundle(open_bundle(bundle))
    if as_json:
        print_json(report)
    else:
        print_rich(render(report))


@main.command("generate")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("prompt", nargs=-1, required=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="VIDEO")
@click.option("--frames", type=click.Path(path_type=Path), help="Folder for PNG frames.")
@click.option("--seed", type=int, default=1024, show_default=True)
@guidance_options
@click.option(
    "--device",
    type=click.Choice(["auto", "cuda", "cpu", "emulated"]),
    default="auto",
    show_default=True,
    help="emulated: a Blackwell GPU's numbers on a Hopper GPU, and not its speed.",
)
@click.option("--sampler", type=click.Choice(list(SAMPLERS)), help="Default: the bundle's.")
@click.option("--warmup", type=int, default=0, show_default=True, help="Unmeasured videos before.")
@click.option("--repeat", type=int, default=1, show_default=True, help="Measured videos.")
@click.option(
    "--prompt-cache", type=click.Path(path_type=Path), help="Folder that keeps prompt embeddings."
)
@force_option
@json_option
@_report_errors
def generate(
    bundle: Path,
    prompt: tuple[str, ...],
    output: Path,
    frames: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Make a video of PROMPT with BUNDLE; several prompts number their outputs."""
    require_address_space()
    from fastwan.runtime.generate import generate as run

    prompts = [typed_text(each, "prompt") for each in prompt]
    result = run(bundle, prompts, output, frames_dir=frames, progress=_progress(), **options)
    if as_json:
        print_json(result)
        return
    for video in result.videos:
        path = video.video or video.frames_dir
        tell(one_line(f"video: {path} ({video.frame_count} frames, {result.device})"))
        if video.first_frame:
            tell(one_line(f"frame: {video.first_frame}"))


@main.command("bench")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--device", type=click.Choice(["auto", "cuda", "null"]), default="auto", show_default=True
)
@click.option("--runs", type=int, default=5, show_default=True, help="Measured videos.")
@click.option("--warmup", type=int, default=2, show_default=True, help="Videos before them.")
@click.option("--prompt", help="Default: one sentence.")
@click.option("--sampler", type=click.Choice(list(SAMPLERS)), help="Default: the bundle's.")
@click.option("--baseline", type=click.Path(path_type=Path), help="Report of an earlier --json.")
@click.option("--limit", type=float, default=0.05, show_default=True, help="Share beyond it.")
@json_option
@_report_errors
def bench(bundle: Path, prompt: str | None, as_json: bool, **options: Any) -> None:
    """Measure a video's stages on a GPU, or count its work on the recording device.

    Exits 5 if a figure is beyond the baseline's by more than the limit.
    """
    from fastwan.quality.bench import DEFAULT_PROMPT
    from fastwan.quality.bench import bench as run
    from fastwan.quality.bench_report import render

    text = typed_text(DEFAULT_PROMPT if prompt is None else prompt, "--prompt")
    report = run(bundle, prompt=text, progress=_progress(), **options)
    if as_json:
        print_json(report)
    else:
        tell(render(report))


@main.command("verify")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--checkpoint", help="Compare the weights with this checkpoint, not with recorded digests."
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "emulated"]),
    default="cpu",
    show_default=True,
    help="emulated: the full size too, on a Hopper GPU.",
)
@lora_option
@click.option("--picture", type=click.Path(path_type=Path), help="PNG of what FP4 changes.")
@json_option
@_report_errors
def verify(bundle: Path, as_json: bool, **options: Any) -> int:
    """Hold BUNDLE against the reference; exit 4 if a limit is passed."""
    require_address_space()
    from fastwan.quality.verify.report import render
    from fastwan.quality.verify.run import verify_bundle

    report = verify_bundle(bundle, progress=_progress(), **options)
    if as_json:
        print_json(report)
    else:
        print_rich(render(report))
    return 0 if report.passed else 4


@main.command("selftest")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", default="selftest", type=click.Path(path_type=Path), metavar="FOLDER"
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cuda", "emulated", "host"]),
    default="auto",
    show_default=True,
    help="auto: the GPU, or host, what can be proven without one.",
)
@force_option
@json_option
@_report_errors
def selftest(bundle: Path, output: Path, as_json: bool, **options: Any) -> int:
    """Go from the driver to a video with BUNDLE in stages, up to the first that fails.

    Exits 3 if it stops because the environment lacks something, 4 if a result is wrong.
    """
    require_address_space()
    from fastwan.quality.selftest.markdown import render
    from fastwan.quality.selftest.stages import selftest as run

    report = run(bundle, output, progress=_progress(), **options)
    if as_json:
        print_json(report)
    else:
        tell(render(report))
    return report.exit_code


@main.command("build-plugin")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder for the library.")
@click.option("--emulated", is_flag=True, help="Emulate FP4 on compute capability 9.0 instead.")
@force_option
@json_option
@_report_errors
def build_plugin(output: Path | None, as_json: bool, **options: bool) -> None:
    """Compile libfastwan_plugins.so, the FP4 attention, with CMake and nvcc."""
    from fastwan.plugins import build

    report = build.plugin_report(build.build_plugin(output, progress=_progress(), **options))
    if as_json:
        print_json(report)
        return
    tell(one_line(report.library))
    if report.build["tensorrt"] == "none" and not options["emulated"]:
        say(
            "without the TensorRT plugin: no headers were found. The tensorrt-rtx backend does not "
            "need it; for tensorrt set TENSORRT_ROOT and build again"
        )


@main.command("doctor")
@json_option
@_report_errors
def doctor(as_json: bool) -> None:
    """Tell what this machine can do, and what to install for the rest."""
    from fastwan.doctor import DoctorReport, diagnose, render

    findings = diagnose()
    if as_json:
        print_json(DoctorReport(findings=tuple(findings)))
    else:
        print_rich(render(findings))


if __name__ == "__main__":
    main()
