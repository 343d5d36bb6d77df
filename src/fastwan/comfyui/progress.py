"""Progress of a video on its node: a bar by step and by frame, pictures, and the stop button."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fastwan.comfyui import host
from fastwan.runtime.model.executor import Array

if TYPE_CHECKING:
    import torch


class NodeProgress:
    """What the runtime reports, on the node that runs; see `fastwan.progress.Progress`.

    Args:
        take: given the frames, uint8 [n, H, W, 3], as they are decoded.

    Attributes:
        latents: those after the last step, fp32 [1, C, T, h, w]; None before it.
    """

    def __init__(self, take: Callable[[Array], None]) -> None:
        self._take = take
        self.latents: torch.Tensor | None = None
        self._bar = host.Bar()
        self._picture = host.latent_preview()
        self._total = 0
        self._done = 0

    def start(self, stage: str, total: int = 0, unit: str = "") -> None:
        host.stop_if_asked()
        self._done, self._total = 0, total

    def advance(self, amount: int = 1, note: str = "") -> None:
        self._done += amount
        if self._total:
            self._bar.show(self._done, self._total)

    def finish(self, note: str = "") -> None:
        pass

    def after_step(self, step: int, timestep: int, latents: torch.Tensor | Array) -> None:
        """Keep and show the latents of a step; the callback of a request."""
        import torch

        self.latents = torch.as_tensor(latents).clone()
        if self._picture is not None:
            self._bar.show(self._done, self._total, self._picture(self.latents))
        host.stop_if_asked()

    def after_frames(self, frames: Array) -> None:
        """Keep the frames of a latent and show the first of them; the callback of a request.

        Args:
            frames: uint8 [n, H, W, 3].
        """
        from PIL import Image

        self._take(frames)
        self._bar.show(self._done, self._total, Image.fromarray(frames[0]))
        host.stop_if_asked()
