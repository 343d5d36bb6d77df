"""What a pipeline call returns, and the conversions on the way in and out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fastwan.errors import BadInput
from fastwan.runtime.model.executor import Array
from fastwan.runtime.timings import Timings

if TYPE_CHECKING:
    import torch

OutputType = Literal["np", "pil", "pt", "latent"]
OUTPUT_TYPES = ("np", "pil", "pt", "latent")


@dataclass(frozen=True)
class PipelineOutput:
    """What a call returns.

    Attributes:
        frames: one video, by output type: ``np`` uint8 array [1, F, H, W, 3]; ``pt`` uint8 tensor
            [1, F, 3, H, W]; ``pil`` a list of one list of images; ``latent`` fp32 tensor
            [1, C, T, h, w]. Pixels stay uint8, as the decoder makes them: a float video of the
            full size would need four times the memory and hold nothing more.
        timings: measured seconds by stage.
        device: device that ran.
        note: why "auto" chose it; empty where it was named.
    """

    frames: Any
    timings: Timings
    device: str
    note: str


def collect_frames(frames: Iterator[Array], shape: tuple[int, ...], output_type: str) -> Any:
    """Frames as "np", "pil" or "pt"; see `PipelineOutput`.

    Args:
        frames: uint8 [H, W, 3] each, valid until the next one.
        shape: of the video, [F, H, W, 3].
    """
    if output_type == "pil":
        from PIL import Image

        return [[Image.fromarray(frame.copy()) for frame in frames]]
    video = np.empty((1, *shape), np.uint8)
    for index, frame in enumerate(frames):
        video[0, index] = frame
    if output_type == "pt":
        import torch

        return torch.from_numpy(video).permute(0, 1, 4, 2, 3).contiguous()
    return video


def to_numpy(tensor: torch.Tensor | Array) -> Array:
    """A CPU array of a tensor; bf16 becomes fp32, which holds it exactly."""
    if isinstance(tensor, np.ndarray):
        return tensor
    tensor = tensor.detach().cpu()
    return np.asarray((tensor.float() if tensor.is_floating_point() else tensor).numpy())


def latents_like(latents: torch.Tensor | Array, shape: tuple[int, ...]) -> Array:
    """`latents` as a contiguous fp32 array.

    Raises:
        BadInput: not of `shape`.
    """
    array = to_numpy(latents)
    if array.shape != shape:
        raise BadInput(
            f"latents have shape {list(array.shape)}, the bundle wants {list(shape)}",
            where="latents",
        )
    return np.ascontiguousarray(array, np.float32)
