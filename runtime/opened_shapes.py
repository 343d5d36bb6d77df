"""The shapes of a bundle that are open: a bundle with several opens each when it is first made."""

from __future__ import annotations

from threading import Lock

from fastwan.bundle import Bundle
from fastwan.config import VideoShape
from fastwan.runtime.arguments import chosen_shape
from fastwan.runtime.components import Components
from fastwan.runtime.pretrained import open_components
from fastwan.runtime.request import Request


class OpenedShapes:
    """Components of each shape of a bundle that was asked for.

    Args:
        first: those of the shape that the bundle was opened at, its manifest's first.
        device: that of every shape.
        threads: see `fastwan.runtime.pipeline.FastWanPipeline.from_bundle`.
    """

    def __init__(self, bundle: Bundle, first: Components, device: str, threads: int) -> None:
        self._bundle = bundle
        self._first = first
        self._device = device
        self._threads = threads
        self._others: dict[VideoShape, Components] = {}
        self._opening = Lock()

    def of(self, request: Request) -> Components:
        """Components of the shape that a request asks for, for a caller that has the turn.

        A device holds one shape: the others are closed.

        Raises:
            BadInput: the bundle has no such shape.
        """
        shapes = self._bundle.manifest.video_shapes
        if len(shapes) == 1:
            return self._first
        shape = chosen_shape(
            shapes, height=request.height, width=request.width, num_frames=request.num_frames
        )
        with self._opening:
            known = {shapes[0]: self._first, **self._others}
            if shape not in known:
                opened = open_components(self._bundle.at(shape), self._device, self._threads)[1]
                known[shape] = self._others[shape] = opened
        for other, components in known.items():
            if components.fused and other != shape:
                components.close()
        return known[shape]

    def close(self) -> None:
        """Give back all of them; the next call opens what it needs anew."""
        for components in (self._first, *self._others.values()):
            components.close()
