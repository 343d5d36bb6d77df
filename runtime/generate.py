"""`generate`: prompts to files, frames streamed from the decoder to the encoder."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from fastwan.console import say
from fastwan.errors import BadInput
from fastwan.progress import Progress, Quiet
from fastwan.runtime.encoder import FPS
from fastwan.runtime.model.executor import Array
from fastwan.runtime.model.noise import DEFAULT_SEED, noise_of, seed_of
from fastwan.runtime.pipeline import FastWanPipeline
from fastwan.runtime.recording.memory_plan import bundle_memory
from fastwan.runtime.report import GenerateReport, MadeVideo
from fastwan.runtime.request import Request
from fastwan.runtime.timings import Timings
from fastwan.runtime.video import (
    Output,
    WriteFrame,
    check_outputs,
    open_output,
    places_of,
)
from fastwan.schema import BundleFacts

MAX_RUNS = 100_000
"""Largest number of videos of one prompt."""

Run = tuple[Timings, str, int]
"""Times, hash and number of the frames of one video."""


def generate(
    bundle: Path,
    prompt: str | Sequence[str],
    output: Path,
    *,
    seed: int | None = DEFAULT_SEED,
    negative_prompt: str | None = None,
    guidance_scale: float | None = None,
    device: str = "auto",
    frames_dir: Path | None = None,
    sampler: str | None = None,
    height: int | None = None,
    width: int | None = None,
    num_frames: int | None = None,
    warmup: int = 0,
    repeat: int = 1,
    prompt_cache: Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> GenerateReport:
    """Make videos and write them; no more than the frames of one latent are held at a time.

    Where one fails, nothing of it is written.

    Args:
        bundle: folder that ``build-engine`` wrote.
        prompt: one, or several that are made one after the other in this process; several number
            their outputs: ``x_0.mp4``, ``x_1.mp4``.
        output: ``x.mp4``, a folder, or ``folder/name_%04d.png``.
        seed: of the noise of every video; None draws a fresh one, which the report tells.
        negative_prompt: what a guided sampler leads away from; None is the empty text.
        guidance_scale: None for the sampler's; 1 at most is no guidance.
        device: "auto", "cpu", "cuda" or "emulated", see `FastWanPipeline.from_bundle`.
        frames_dir: folder for PNG frames beside an mp4.
        sampler: one of the bundle's; by default the first.
        height, width, num_frames: of the bundle's shapes, the first that has them all.
        warmup: videos of each prompt that are made before and neither measured nor written.
        repeat: times that each video is made and measured; the last one is written.
        prompt_cache: folder that keeps the embeddings of prompts.
        force: replace outputs that this tool did not write, too.
        progress: told of stages and steps.

    Raises:
        BadInput: a number out of range, an argument that the bundle cannot serve, or an output
            that cannot be written.
        EnvironmentLacks: the device cannot be used.
        VerificationFailed: a file of the bundle differs from its hash.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise BadInput("nothing to make", where="prompt", fix="one prompt at least")
    for option, value, least in (("--repeat", repeat, 1), ("--warmup", warmup, 0)):
        if not least <= value <= MAX_RUNS:
            raise BadInput(f"{value} is not within {least} .. {MAX_RUNS:,}", where=option)
    seed = seed_of(seed)
    requests = [
        Request(
            prompt=text,
            negative_prompt=negative_prompt,
            guidance_scale=guidance_scale,
            seed=seed,
            sampler=sampler,
        )
        for text in prompts
    ]
    places = places_of(output, frames_dir, len(prompts))
    inputs = [bundle] if prompt_cache is None else [bundle, prompt_cache]
    check_outputs([output for each in places for output in each], force=force, inputs=inputs)
    with FastWanPipeline.from_bundle(
        bundle,
        device,
        prompt_cache=prompt_cache,
        height=height,
        width=width,
        num_frames=num_frames,
    ) as pipeline:
        if pipeline.choice.note or not isinstance(progress or Quiet(), Quiet):
            say(f"device: {_running_on(pipeline)}")
        memory = None
        if pipeline.bundle.manifest.engines:
            memory = bundle_memory(pipeline.bundle, sampler)
        jobs = [
            _Job(request, tuple(place), warmup, repeat)
            for request, place in zip(requests, places, strict=True)
        ]
        made = _make_all(pipeline, jobs, force, progress)
        return GenerateReport(
            bundle=BundleFacts.of(pipeline.bundle),
            device=pipeline.choice.name,
            note=pipeline.choice.note,
            runtime_cache=pipeline.components.runtime_cache,
            device_bytes=memory,
            videos=tuple(
                _made(pipeline, job, seed, runs) for job, runs in zip(jobs, made, strict=True)
            ),
        )


def _running_on(pipeline: FastWanPipeline) -> str:
    """What makes the videos, and why, in a line."""
    choice = pipeline.choice
    if choice.note:
        return choice.note
    if choice.name == "cpu":
        return "the CPU reference, as asked for: slow, for small videos"
    return str(pipeline.components.runs_on)


@dataclass(frozen=True)
class _Job:
    """A video to make, how often, and where it goes."""

    request: Request
    outputs: tuple[Output, ...]
    warmup: int
    repeat: int


def _make_all(
    pipeline: FastWanPipeline, jobs: Sequence[_Job], force: bool, progress: Progress | None
) -> list[list[Run]]:
    """Runs of each job, warm-ups first. A video's files are written while the next one is made."""
    made = []
    with ThreadPoolExecutor(1) as pool:
        for job in jobs:
            with _unwritable(job.outputs):
                made.append(_make(pipeline, job, force, progress, pool))
        for job, (_, written) in zip(jobs, made, strict=True):
            with _unwritable(job.outputs):
                written.result()
    return [runs for runs, _ in made]


@contextmanager
def _unwritable(outputs: Sequence[Output]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = ", ".join(str(output.path) for output in outputs)
        raise BadInput(f"output cannot be written: {error}", where=where) from error


def _make(
    pipeline: FastWanPipeline,
    job: _Job,
    force: bool,
    progress: Progress | None,
    pool: Executor,
) -> tuple[list[Run], Future[None]]:
    """Times, hash and number of the frames of each run; the last run's are written.

    Where a device makes a video at once, its frames are written beside the next video.
    """
    shape = pipeline.components.shape
    beside = pipeline.components.fused
    written: Future[None] = Future()
    runs = []
    with ExitStack() as stack:
        writers = [
            stack.enter_context(
                open_output(each, height=shape.height, width=shape.width, force=force)
            )
            for each in job.outputs
        ]
        for index in range(job.warmup + job.repeat):
            timings, digest, kept, count = Timings(), hashlib.sha256(), [], 0
            last = index + 1 == job.warmup + job.repeat
            begin = time.perf_counter()
            for frame in pipeline.frames(job.request, timings=timings, progress=progress):
                digest.update(frame.tobytes())
                count += 1
                if last and beside:
                    kept.append(frame)
                elif last:
                    _write(writers, [frame], timings)
            total = time.perf_counter() - begin
            if beside and last:
                timings["write"] = 0.0  # measured beside the next video
            timings["total"] = total
            runs.append((timings, digest.hexdigest(), count))
        if beside:
            written = pool.submit(_finish, stack.pop_all(), writers, kept, timings)
        else:
            written.set_result(None)
    return runs, written


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


def _made(pipeline: FastWanPipeline, job: _Job, seed: int, runs: Sequence[Run]) -> MadeVideo:
    shape = pipeline.components.shape
    video = next((each.path for each in job.outputs if each.kind == "mp4"), None)
    images = next((each for each in job.outputs if each.kind == "frames"), None)
    _, digest, count = runs[-1]
    seconds = [{name: round(s, 6) for name, s in timings.items()} for timings, _, _ in runs]
    warmups, measured = seconds[: job.warmup], seconds[job.warmup :]
    schedule = pipeline.schedule(job.request.sampler, job.request.guidance_scale)
    return MadeVideo(
        prompt=str(job.request.prompt),
        negative_prompt=job.request.negative_prompt or "",
        seed=seed,
        noise=noise_of(job.request.generator, job.request.latents),
        sampler=schedule.name,
        guidance_scale=schedule.guidance,
        video=str(video) if video else None,
        frames_dir=str(images.path) if images else None,
        first_frame=str(images.frame(0)) if images else None,
        height=shape.height,
        width=shape.width,
        fps=FPS,
        frame_count=count,
        frames_sha256=digest,
        seconds=seconds[-1],
        runs=tuple(measured),
        warmups=tuple(warmups),
    )
