"""Frames to files as they are decoded: an mp4 through PyAV, or a folder of PNG images.

Both appear whole or not at all and replace only what this tool wrote. The same frames give the same
bytes under one version of the libraries: one encoder thread, no times of day, no muxer's name.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fastwan.errors import BadInput
from fastwan.outputs import OutputFile, OutputFolder
from fastwan.runtime.encoder import FPS, add_stream, load_av, picture
from fastwan.runtime.seal import is_sealed, seal

if TYPE_CHECKING:
    from fastwan.runtime.model.executor import Array

FRAME_PATTERN = "frame_%04d.png"
FRAMES_INFO = "frames.json"
"""Lies in every folder of frames: their number, rate and names."""

WriteFrame = Callable[["Array"], None]
"""Takes one frame, uint8 [H, W, 3]."""

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

    def numbered(self, index: int) -> Output:
        """The same for one of several videos: ``x_0.mp4``."""
        path = self.path
        return replace(self, path=path.with_name(f"{path.stem}_{index}{path.suffix}"))


def parse_output(path: Path) -> Output:
    """What an output path means: ``x.mp4``, a folder, or ``folder/name_%04d.png``.

    Raises:
        BadInput: none of these.
    """
    suffix = path.suffix.lower()
    if suffix == ".mp4":
        return Output("mp4", path)
    if suffix == ".png":
        if not _PRINTF.fullmatch(path.name):
            raise BadInput(
                "one image cannot hold a video",
                where=str(path),
                fix=f"number the images, e.g. {FRAME_PATTERN}, or name a folder",
            )
        return Output("frames", path.parent, path.name)
    if not suffix or os.path.isdir(path):
        return Output("frames", path)
    raise BadInput(
        f"unknown output format {path.suffix!r}",
        where=str(path),
        fix=f"use .mp4, a folder, or a folder with {FRAME_PATTERN}",
    )


def places_of(output: Path, frames_dir: Path | None, count: int) -> list[list[Output]]:
    """Where each of `count` videos goes: to the output and, if given, to a folder of frames too.

    Raises:
        BadInput: see `parse_output`.
    """
    wanted = [parse_output(output)]
    if frames_dir is not None:
        wanted.append(Output("frames", frames_dir))
    return [[each.numbered(i) for each in wanted] if count > 1 else wanted for i in range(count)]


def check_outputs(
    outputs: Sequence[Output], *, force: bool = False, inputs: Sequence[Path] = ()
) -> None:
    """Find out before any work whether all of these can be written.

    Args:
        force: replace what this tool did not write, too.
        inputs: what the command reads.

    Raises:
        BadInput: one may not be replaced or cannot be written, or lies in another one.
    """
    for output in outputs:
        _place(output, force, inputs)
        for other in outputs:
            inside = Path(os.path.realpath(other.path))
            around = Path(os.path.realpath(output.path))
            if other is not output and around in (inside, *inside.parents):
                raise BadInput(
                    f"output lies in another one, {output.path}",
                    where=str(other.path),
                    fix="name a place beside it",
                )


def _place(output: Output, force: bool, inputs: Sequence[Path]) -> OutputFile | OutputFolder:
    if output.kind == "mp4":
        return OutputFile(output.path, is_sealed, force)
    return OutputFolder(output.path, "frames", force, "--frames or -o", tuple(inputs))


def open_output(
    output: Output, *, height: int, width: int, force: bool = False
) -> AbstractContextManager[WriteFrame]:
    """Context manager that yields the function to write a frame with.

    Args:
        force: replace what this tool did not write, too.

    Raises:
        BadInput: the output may not be replaced or cannot be written.
        EnvironmentLacks: PyAV is missing (mp4).
    """
    place = _place(output, force, ())
    if isinstance(place, OutputFile):
        return _mp4(place, height, width)
    return _images(place, output)


@contextmanager
def _mp4(place: OutputFile, height: int, width: int) -> Iterator[WriteFrame]:
    av = load_av(str(place.path))
    with place.make() as temporary:
        try:
            options = {"fflags": "+bitexact", "movflags": "+faststart"}
            with av.open(str(temporary), "w", format="mp4", options=options) as container:
                stream = add_stream(container, height, width)

                def write(frame: Array) -> None:
                    container.mux(stream.encode(picture(frame)))

                yield write
                container.mux(stream.encode(None))
        except av.error.FFmpegError as error:
            raise BadInput(f"video cannot be written: {error}", where=str(place.path)) from error
        seal(temporary)


@contextmanager
def _images(place: OutputFolder, output: Output) -> Iterator[WriteFrame]:
    from PIL import Image

    count = 0
    with place.make() as folder:

        def write(frame: Array) -> None:
            nonlocal count
            Image.fromarray(frame).save(folder / (output.pattern % count), compress_level=6)
            count += 1

        yield write
        record = {"frames": count, "fps": FPS, "pattern": output.pattern}
        (folder / FRAMES_INFO).write_text(json.dumps(record) + "\n", encoding="utf-8")
