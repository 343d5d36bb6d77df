"""A bundle as the server's player."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal, Self

from fastwan.runtime.encoder import FPS
from fastwan.runtime.model.executor import Array
from fastwan.runtime.pipeline import FastWanPipeline
from fastwan.runtime.recording.memory_plan import bundle_memory
from fastwan.runtime.request import Request
from fastwan.runtime.timings import Timings
from fastwan.serve.jobs import Asked
from fastwan.serve.offer import Offer, resolve
from fastwan.serve.player import Cancelled, State, Watch
from fastwan.serve.wire import CreateVideo

_WARM_UP = CreateVideo(prompt="A red fox in the snow", seed=0)


class BundlePlayer:
    """Makes videos with a pipeline.

    Args:
        pipeline: closed with the player.
    """

    def __init__(self, pipeline: FastWanPipeline) -> None:
        self._pipeline = pipeline
        self._device_bytes = 0
        manifest = pipeline.bundle.manifest
        self._offer = Offer(
            model=manifest.onnx.model.name,
            shapes=manifest.video_shapes,
            samplers={spec.name: spec for spec in manifest.samplers},
            fps=FPS,
            device=pipeline.choice.name,
        )

    @classmethod
    def open(cls, bundle: Path, device: str, *, prompt_cache: Path | None = None) -> Self:
        """Open a bundle; errors as of `FastWanPipeline.from_bundle`."""
        return cls(FastWanPipeline.from_bundle(bundle, device, prompt_cache=prompt_cache))

    @property
    def offer(self) -> Offer:
        return self._offer

    @property
    def runs_on(self) -> str:
        """The device, and why where it was not named."""
        choice = self._pipeline.choice
        return choice.note or f"device {choice.name}"

    def warm_up(self) -> None:
        if self._pipeline.components.fused:
            self._device_bytes = bundle_memory(self._pipeline.bundle).total
        # Of the default sampler alone: on a GPU each has memory of its own.
        asked = resolve(self._offer, _WARM_UP, longest_prompt=len(_WARM_UP.prompt))
        unwatched = Watch(on_step=lambda _: None, on_frame=lambda _: None, cancelled=lambda: False)
        self.play(asked, unwatched)

    def play(self, asked: Asked, watch: Watch) -> Timings:
        timings = Timings()
        begin = time.perf_counter()

        def refuse_cancelled() -> None:
            if watch.cancelled():
                raise Cancelled

        def on_step(step: int, _timestep: int, _latents: object) -> None:
            watch.on_step(step + 1)
            refuse_cancelled()

        def on_frames(chunk: Array) -> None:
            for frame in chunk:
                refuse_cancelled()
                watch.on_frame(frame)

        request = Request(
            prompt=asked.prompt,
            negative_prompt=asked.negative_prompt,
            guidance_scale=asked.guidance_scale,
            height=asked.height,
            width=asked.width,
            num_frames=asked.num_frames,
            seed=asked.seed,
            sampler=asked.sampler,
            output_type="uint8",
            on_step=on_step,
            on_frames=on_frames,
        )
        refuse_cancelled()
        self._pipeline.stream(request, timings=timings)
        timings["total"] = time.perf_counter() - begin
        return timings

    def state(self) -> State:
        components = self._pipeline.components
        if not components.fused:
            return State()
        launch: Literal["graph", "eager"] = "eager" if components.eager_reason else "graph"
        return State(launch=launch, device_bytes=self._device_bytes)

    def close(self) -> None:
        self._pipeline.close()
