"""What a pipeline call returns: videos as diffusers' WanPipeline hands them out, or as uint8."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fastwan.errors import BadInput
from fastwan.runtime.model.executor import Array
from fastwan.runtime.model.given import tensor_or_array
from fastwan.runtime.model.noise import Noise
from fastwan.runtime.timings import Timings

OutputType = Literal["np", "pt", "pil", "uint8", "latent"]
OUTPUT_TYPES = ("np", "pt", "pil", "uint8", "latent")

_LEVELS = np.float32(255)


@dataclass(frozen=True, repr=False, eq=False)
class PipelineOutput:
    """What a call returns. ``output[0]`` and ``frames, = output`` are its frames, too.

    Attributes:
        frames: the videos, by output type: ``np`` fp32 array [B, F, H, W, 3] in 0..1; ``pt`` fp32
            tensor [B, F, 3, H, W] in 0..1; ``pil`` a list of images for each video; ``uint8``
            array [B, F, H, W, 3], as the decoder makes it, in a quarter of the memory; ``latent``
            fp32 tensor [B, C, T, h, w]. A float is ``level / 255``: times 255, cut or rounded, it
            is that level again.
        timings: measured seconds by stage, of all videos together.
        device: device that ran.
        note: why "auto" chose it; empty where it was named.
        output_type: what `frames` are.
        seeds: of each video; None for one that a generator was given for.
        noise: what the initial noise of each video is.
    """

    frames: Any
    timings: Timings
    device: str
    note: str
    output_type: OutputType = "np"
    seeds: tuple[int | None, ...] = ()
    noise: tuple[Noise, ...] = ()

    @property
    def seed(self) -> int | None:
        """Seed of the first video."""
        return self.seeds[0] if self.seeds else None

    def to_tuple(self) -> tuple[Any, ...]:
        """The frames alone, as ``return_dict=False`` returns them."""
        return (self.frames,)

    def keys(self) -> tuple[str, ...]:
        return ("frames",)

    def __getitem__(self, key: int | slice | str) -> Any:
        return {"frames": self.frames}[key] if isinstance(key, str) else self.to_tuple()[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.to_tuple())

    def __len__(self) -> int:
        return 1

    def __repr__(self) -> str:
        shape = getattr(self.frames, "shape", None)
        if shape is None:
            shape = (len(self.frames), *(len(video) for video in self.frames[:1]))
        return (
            f"PipelineOutput({self.output_type} {list(shape)}, seeds {list(self.seeds)}, "
            f"on {self.device} in {sum(self.timings.values()):.3f} s)"
        )

    def save(self, path: Path | str, *, force: bool = False) -> tuple[Path, ...]:
        """Write each video, as ``generate`` does, and return where.

        Args:
            path: ``x.mp4``, a folder, or ``folder/name_%04d.png``; several videos number theirs:
                ``x_0.mp4``, ``x_1.mp4``.
            force: replace what this tool did not write, too.

        Raises:
            BadInput: latents, or a place that may not be replaced or cannot be written.
            EnvironmentLacks: PyAV is missing (mp4).
        """
        from fastwan.runtime.video import check_outputs, open_output, parse_output

        if self.output_type == "latent":
            raise BadInput("latents are no frames", where="output_type", fix="use np or uint8")
        output = parse_output(Path(path))
        many = len(self.frames) > 1
        outputs = [output.numbered(i) if many else output for i in range(len(self.frames))]
        check_outputs(outputs, force=force)
        for place, video in zip(outputs, self.frames, strict=True):
            frames = [_to_uint8(frame, self.output_type) for frame in video]
            height, width, _ = frames[0].shape
            with open_output(place, height=height, width=width, force=force) as write:
                for frame in frames:
                    write(frame)
        return tuple(place.path for place in outputs)


class Collector:
    """Gathers the videos of a call in one output type.

    Args:
        count: videos at most.
    """

    def __init__(self, count: int, output_type: OutputType) -> None:
        self._count = count
        self._type = output_type
        self._made = 0
        self._images: list[list[Any]] = []
        self._videos: Array | None = None

    def add(self, shape: tuple[int, ...], frames: Iterable[Array]) -> None:
        """Take a video.

        Args:
            shape: [F, H, W, 3], or [C, T, h, w] of latents.
            frames: uint8 [H, W, 3] each, valid until the next; or latents, channel by channel.
        """
        if self._type == "pil":
            from PIL import Image

            self._images.append([Image.fromarray(frame.copy()) for frame in frames])
            return
        if self._videos is None:
            frame_shape = [shape[1:][axis] for axis in self._axes]
            dtype = np.uint8 if self._type == "uint8" else np.float32
            self._videos = np.empty((self._count, shape[0], *frame_shape), dtype)
        # Straight into its place: a float video of the full size takes 388 MB.
        for place, frame in zip(self._videos[self._made], frames, strict=True):
            if self._type in ("np", "pt"):
                levels = frame.transpose(self._axes)
                np.divide(levels, _LEVELS, out=place, dtype=np.float32)
            else:
                place[...] = frame
        self._made += 1

    @property
    def _axes(self) -> tuple[int, int, int]:
        return (2, 0, 1) if self._type == "pt" else (0, 1, 2)

    def result(self) -> Any:
        """The videos that were taken, as `PipelineOutput` describes them."""
        if self._videos is None:
            return self._images
        videos = self._videos[: self._made]
        if self._type in ("pt", "latent"):
            return tensor_or_array(videos)
        return videos


def _to_uint8(frame: Any, output_type: OutputType) -> Array:
    """A frame of an output as uint8 [H, W, 3].

    Raises:
        BadInput: NaN or Inf was written into it.
    """
    array = np.asarray(frame.permute(1, 2, 0) if output_type == "pt" else frame)
    if array.dtype != np.uint8:
        if not np.isfinite(array).all():
            raise BadInput("frames hold NaN or Inf", where="frames")
        array = np.rint(np.clip(array, 0, 1) * _LEVELS).astype(np.uint8)
    return np.ascontiguousarray(array)
