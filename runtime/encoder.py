"""Frames as H.264 through PyAV: the one place that knows the codec and its settings."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any

from fastwan.errors import EnvironmentLacks
from fastwan.install import extra_of, how_to_install

if TYPE_CHECKING:
    from fastwan.runtime.model.executor import Array

FPS = 16
"""Frames a second of Wan 2.1."""

_CRF = "18"


def load_av(where: str) -> ModuleType:
    """PyAV.

    Args:
        where: what it is wanted for, for the message.

    Raises:
        EnvironmentLacks: it is missing.
    """
    try:
        import av
    except ImportError as error:
        raise EnvironmentLacks(
            f"PyAV is missing, which writes mp4: {error}",
            where=where,
            fix=f"{how_to_install(extra_of('av'))}, or name a folder for PNG frames",
        ) from error
    module: ModuleType = av
    return module


def add_stream(container: Any, height: int, width: int, *, at_once: bool = False) -> Any:
    """A video stream in an open container of PyAV.

    Args:
        at_once: each frame leaves the encoder when it was given, without a look at those behind
            it; the file becomes larger.
    """
    import av

    if "libx264" in av.codecs_available:
        stream = container.add_stream("libx264", rate=FPS)
        # With its routines for this processor x264 made 14 different files of the same frames in
        # 300 encodes, with those for any processor one.
        options = {"crf": _CRF, "preset": "medium", "x264-params": "cpu-independent=1"}
        stream.options = options | ({"tune": "zerolatency"} if at_once else {})
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


def picture(frame: Array) -> Any:
    """A frame, uint8 [H, W, 3], as `add_stream`'s streams take it."""
    import av

    return av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(
        format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG"
    )
