"""Progress of a video on its node: a bar by step and by frame, pictures, and the stop button."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from fastwan.comfyui import host
from fastwan.runtime.model.executor import Array

if TYPE_CHECKING:
    import torch

_FRAMES_A_PICTURE = 4
"""A picture for each latent: it decodes to four frames."""


class NodeProgress:
    """What the runtime reports, on the node that runs; see `fastwan.progress.Progress`.

    Attributes:
        latents: those after the last step, fp32 [1, C, T, h, w]; None before it.
    """

    def __init__(self) -> None:
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

    def watched(self, frames: Iterable[Array]) -> Iterator[Array]:
        """The same frames, shown as they are decoded.

        Args:
            frames: uint8 [H, W, 3] each.
        """
        from PIL import Image

        for index, frame in enumerate(frames):
            if index % _FRAMES_A_PICTURE == 0:
                self._bar.show(self._done, self._total, Image.fromarray(frame.copy()))
            host.stop_if_asked()
            yield frame
