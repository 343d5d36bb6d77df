"""`generate`: one prompt to files, frames streamed from the decoder to the encoder."""

from __future__ import annotations

import hashlib
import sys
from contextlib import ExitStack
from pathlib import Path

from fastwan.errors import BadInput
from fastwan.progress import Progress
from fastwan.runtime.outputs import Timings
from fastwan.runtime.pipeline import FastWanPipeline
from fastwan.runtime.video import FPS, Output, open_output, parse_output


def generate(
    bundle: Path,
    prompt: str,
    output: Path,
    *,
    seed: int = 1024,
    device: str = "auto",
    frames_dir: Path | None = None,
    sampler: str | None = None,
    progress: Progress | None = None,
) -> dict[str, object]:
    """Make one video and write it; no more than the frames of one latent are held at a time.

    Args:
        output: ``x.mp4``, a folder, or ``folder/name_%04d.png``.
        frames_dir: folder for PNG frames beside an mp4.
        sampler: "unipc" or "dmd" instead of the bundle's.

    Returns:
        What was made, ready for JSON; ``seconds`` are measured, ``frames_sha256`` is over the raw
        pixels of all frames in order.

    Raises:
        BadInput, EnvironmentLacks, VerificationFailed: see `FastWanPipeline`; nothing is written.
    """
    outputs = [parse_output(output)]
    if frames_dir is not None:
        outputs.append(Output("frames", frames_dir))
    pipeline = FastWanPipeline.from_bundle(bundle, device)
    if pipeline.device.note:
        print(pipeline.device.note, file=sys.stderr)
    schedule = pipeline.schedule(sampler)
    shape = pipeline.components.shape
    timings = Timings()
    digest = hashlib.sha256()
    count = 0
    try:
        with ExitStack() as stack:
            # Entered first: an output that cannot be written is found before minutes of work.
            writers = [
                stack.enter_context(open_output(each, height=shape.height, width=shape.width))
                for each in outputs
            ]
            pipeline.load(timings=timings)
            latents = pipeline.denoise(
                pipeline.embed(prompt, timings=timings, progress=progress),
                seed=seed,
                sampler=sampler,
                timings=timings,
                progress=progress,
            )
            for frame in pipeline.decode(latents, timings=timings, progress=progress):
                digest.update(frame.tobytes())
                count += 1
                with timings.measure("write"):
                    for write in writers:
                        write(frame)
    except OSError as error:
        raise BadInput(f"output cannot be written: {error}", where=str(output)) from error
    video = next((each.path for each in outputs if each.kind == "mp4"), None)
    images = next((each for each in outputs if each.kind == "frames"), None)
    return {
        "bundle": str(bundle),
        "prompt": prompt,
        "seed": seed,
        "sampler": schedule.name,
        "device": pipeline.device.name,
        "note": pipeline.device.note,
        "video": str(video) if video else None,
        "frames_dir": str(images.path) if images else None,
        "first_frame": str(images.frame(0)) if images else None,
        "height": shape.height,
        "width": shape.width,
        "fps": FPS,
        "frame_count": count,
        "frames_sha256": digest.hexdigest(),
        "seconds": {"kind": "measured", **{name: round(s, 6) for name, s in timings.items()}},
    }
