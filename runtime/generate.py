"""`generate`: prompts to files, frames streamed from the decoder to the encoder."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastwan.errors import BadInput
from fastwan.progress import Progress
from fastwan.runtime.model.executor import Array
from fastwan.runtime.pipeline import FastWanPipeline
from fastwan.runtime.recording.memory_plan import bundle_memory
from fastwan.runtime.report import GenerateReport, MadeVideo
from fastwan.runtime.timings import Timings
from fastwan.runtime.video import FPS, Output, WriteFrame, open_output, parse_output
from fastwan.schema import BundleFacts

Run = tuple[Timings, str, int]
"""Times, hash and number of the frames of one video."""


def generate(
    bundle: Path,
    prompt: str | Sequence[str],
    output: Path,
    *,
    seed: int = 1024,
    device: str = "auto",
    frames_dir: Path | None = None,
    sampler: str | None = None,
    warmup: int = 0,
    repeat: int = 1,
    prompt_cache: Path | None = None,
    progress: Progress | None = None,
) -> GenerateReport:
    """Make videos and write them; no more than the frames of one latent are held at a time.

    Args:
        prompt: one, or several that are made one after the other in this process; several number
            their outputs: ``x_0.mp4``, ``x_1.mp4``.
        output: ``x.mp4``, a folder, or ``folder/name_%04d.png``.
        frames_dir: folder for PNG frames beside an mp4.
        sampler: "unipc" or "dmd" instead of the bundle's.
        warmup: videos of each prompt that are made before and neither measured nor written.
        repeat: times that each video is made and measured; the last one is written.
        prompt_cache: folder that keeps the embeddings of prompts.

    Raises:
        BadInput, EnvironmentLacks, VerificationFailed: see `FastWanPipeline`; nothing is written.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts or repeat < 1 or warmup < 0:
        raise BadInput("nothing to make", where="prompt", fix="one prompt and one run at least")
    wanted = [parse_output(output)]
    if frames_dir is not None:
        wanted.append(Output("frames", frames_dir))
    pipeline = FastWanPipeline.from_bundle(bundle, device, prompt_cache=prompt_cache)
    if pipeline.device.note:
        print(pipeline.device.note, file=sys.stderr)
    memory = None
    if pipeline.bundle.manifest.engines:
        memory = bundle_memory(pipeline.bundle, sampler)
    videos = []
    with ThreadPoolExecutor(1) as pool:
        for index, text in enumerate(prompts):
            outputs = wanted if len(prompts) == 1 else [_numbered(each, index) for each in wanted]
            try:
                runs, written = _make(
                    pipeline, text, outputs, seed, sampler, warmup, repeat, progress, pool
                )
            except OSError as error:
                raise _unwritable(error, output) from error
            videos.append((text, outputs, runs, written))
    made = []
    for text, outputs, runs, written in videos:
        try:
            written.result()
        except OSError as error:
            raise _unwritable(error, output) from error
        made.append(_made(pipeline, text, seed, sampler, outputs, runs))
    return GenerateReport(
        bundle=BundleFacts.of(pipeline.bundle),
        device=pipeline.device.name,
        note=pipeline.device.note,
        runtime_cache=pipeline.components.runtime_cache,
        device_bytes=memory,
        videos=tuple(made),
    )


def _unwritable(error: OSError, output: Path) -> BadInput:
    return BadInput(f"output cannot be written: {error}", where=str(output))


def _numbered(output: Output, index: int) -> Output:
    path = output.path
    return replace(output, path=path.with_name(f"{path.stem}_{index}{path.suffix}"))


def _make(
    pipeline: FastWanPipeline,
    prompt: str,
    outputs: Sequence[Output],
    seed: int,
    sampler: str | None,
    warmup: int,
    repeat: int,
    progress: Progress | None,
    pool: Executor,
) -> tuple[list[Run], Future[None]]:
    """Times, hash and number of the frames of each measured run; the last run's are written.

    Where a device makes a video at once, its frames are written beside the next video.
    """
    shape = pipeline.components.shape
    beside = pipeline.components.fused
    written: Future[None] = Future()
    runs = []
    with ExitStack() as stack:
        # Entered first: an output that cannot be written is found before minutes of work.
        writers = [
            stack.enter_context(open_output(each, height=shape.height, width=shape.width))
            for each in outputs
        ]
        for index in range(warmup + repeat):
            timings, digest, kept, count = Timings(), hashlib.sha256(), [], 0
            last = index + 1 == warmup + repeat
            pipeline.load(sampler=sampler, timings=timings)
            embeds = pipeline.embed(prompt, timings=timings, progress=progress)
            options: dict[str, Any] = {"sampler": sampler, "timings": timings, "progress": progress}
            for frame in pipeline.frames(embeds, seed=seed, **options):
                digest.update(frame.tobytes())
                count += 1
                if last and beside:
                    kept.append(frame.copy())
                elif last:
                    _write(writers, [frame], timings)
            runs.append((timings, digest.hexdigest(), count))
        if beside:
            written = pool.submit(_finish, stack.pop_all(), writers, kept, timings)
        else:
            written.set_result(None)
    return runs[warmup:], written


def _write(writers: Sequence[WriteFrame], frames: Sequence[Array], timings: Timings) -> None:
    with timings.measure("write"):
        for frame in frames:
            for write in writers:
                write(frame)


def _finish(
    stack: ExitStack, writers: Sequence[WriteFrame], frames: Sequence[Array], timings: Timings
) -> None:
    with stack:
        _write(writers, frames, timings)


def _made(
    pipeline: FastWanPipeline,
    prompt: str,
    seed: int,
    sampler: str | None,
    outputs: Sequence[Output],
    runs: Sequence[Run],
) -> MadeVideo:
    shape = pipeline.components.shape
    video = next((each.path for each in outputs if each.kind == "mp4"), None)
    images = next((each for each in outputs if each.kind == "frames"), None)
    _, digest, count = runs[-1]
    seconds = [{name: round(s, 6) for name, s in timings.items()} for timings, _, _ in runs]
    return MadeVideo(
        prompt=prompt,
        seed=seed,
        sampler=pipeline.schedule(sampler).name,
        video=str(video) if video else None,
        frames_dir=str(images.path) if images else None,
        first_frame=str(images.frame(0)) if images else None,
        height=shape.height,
        width=shape.width,
        fps=FPS,
        frame_count=count,
        frames_sha256=digest,
        seconds=seconds[-1],
        runs=tuple(seconds),
    )
