"""Frames to files as they are decoded: an mp4 through PyAV, or a folder of PNG images.

Both appear whole or not at all, and the same frames give the same bytes under one version of the
libraries: one encoder thread, no times of day, no muxer's name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fastwan.errors import BadInput, EnvironmentLacks
from fastwan.files import atomic_dir, atomic_file
from fastwan.runtime.model.executor import Array

FPS = 16
"""Frames a second of Wan 2.1."""

FRAME_PATTERN = "frame_%04d.png"
FRAMES_MARKER = "frames.json"
"""Lies in every folder of frames; a folder with it may be replaced by a newer one."""

WriteFrame = Callable[[Array], None]
"""Takes one frame, uint8 [H, W, 3]."""

_CRF = "18"
_PRINTF = re.compile(r"[^%]*%(0[1-9])?d[^%]*\.png", re.IGNORECASE)


@dataclass(frozen=True)
class Output:
    """Where frames go.

    Attributes:
        path: the mp4 file, or the folder of the images.
        pattern: name of an image in the folder, with its number from 0.
    """

    kind: Literal["mp4", "frames"]
    path: Path
    pattern: str = FRAME_PATTERN

    def frame(self, index: int) -> Path:
        return self.path / (self.pattern % index)


def parse_output(path: Path) -> Output:
    """What an output path means: ``x.mp4``, a folder, or ``folder/name_%04d.png``.

    Raises:
        BadInput: none of these.
    """
    suffix = path.suffix.lower()
    if suffix == ".mp4":
        if path.is_dir():
            raise BadInput("output is a folder", where=str(path), fix="name a file, e.g. out.mp4")
        return Output("mp4", path)
    if suffix == ".png":
        if not _PRINTF.fullmatch(path.name):
            raise BadInput(
                "one image cannot hold a video",
                where=str(path),
                fix=f"number the images, e.g. {FRAME_PATTERN}, or name a folder",
            )
        return Output("frames", path.parent, path.name)
    if not suffix or path.is_dir():
        return Output("frames", path)
    raise BadInput(
        f"unknown output format {path.suffix!r}",
        where=str(path),
        fix=f"use .mp4, a folder, or a folder with {FRAME_PATTERN}",
    )


def open_output(output: Output, *, height: int, width: int) -> AbstractContextManager[WriteFrame]:
    """Context manager that yields the function to write a frame with.

    Entering it finds out whether the output can be written, so enter it before long work.

    Raises:
        BadInput: the output may not be replaced or cannot be written.
        EnvironmentLacks: PyAV is missing (mp4).
    """
    if output.kind == "mp4":
        return _mp4(output.path, height, width)
    return _images(output)


@contextmanager
def _mp4(path: Path, height: int, width: int) -> Iterator[WriteFrame]:
    try:
        import av
    except ImportError as error:
        raise EnvironmentLacks(
            f"PyAV is missing, which writes mp4: {error}",
            where=str(path),
            fix="pip install 'av<19', or name a folder for PNG frames",
        ) from error
    with atomic_file(path) as temporary:
        try:
            options = {"fflags": "+bitexact", "movflags": "+faststart"}
            with av.open(str(temporary), "w", format="mp4", options=options) as container:
                stream = _video_stream(av, container, height, width)

                def write(frame: Array) -> None:
                    picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(
                        format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG"
                    )
                    container.mux(stream.encode(picture))

                yield write
                container.mux(stream.encode(None))
        except av.error.FFmpegError as error:
            raise BadInput(f"video cannot be written: {error}", where=str(path)) from error


def _video_stream(av: Any, container: Any, height: int, width: int) -> Any:
    if "libx264" in av.codecs_available:
        stream = container.add_stream("libx264", rate=FPS)
        stream.options = {"crf": _CRF, "preset": "medium"}
    else:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.options = {"q": "3"}
    context = stream.codec_context
    context.width, context.height, context.pix_fmt = width, height, "yuv420p"
    context.thread_count = 1
    # Players guess the matrix of an untagged video from its height.
    context.colorspace = av.video.reformatter.Colorspace.ITU709
    context.color_range = av.video.reformatter.ColorRange.MPEG
    return stream


@contextmanager
def _images(output: Output) -> Iterator[WriteFrame]:
    from PIL import Image

    count = 0
    with atomic_dir(output.path, replace_marker=FRAMES_MARKER) as folder:

        def write(frame: Array) -> None:
            nonlocal count
            Image.fromarray(frame).save(folder / (output.pattern % count), compress_level=6)
            count += 1

        yield write
        record = {"frames": count, "fps": FPS, "pattern": output.pattern}
        (folder / FRAMES_MARKER).write_text(json.dumps(record) + "\n", encoding="utf-8")
