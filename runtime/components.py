"""The three components of a bundle, opened on a device."""

from __future__ import annotations

from functools import cached_property

from fastwan.bundle import Bundle
from fastwan.config import VideoShape
from fastwan.errors import BadInput
from fastwan.runtime.decode import Decoder
from fastwan.runtime.dit import DiT
from fastwan.runtime.executors import Array
from fastwan.runtime.ort_executor import cpu_executor
from fastwan.runtime.text import TextEncoder


class CpuComponents:
    """Components of a bundle over ONNX Runtime, each loaded when it is first used.

    Args:
        bundle: an opened engine bundle.
        threads: see `fastwan.runtime.ort_executor.OnnxRuntimeExecutor`.
    """

    def __init__(self, bundle: Bundle, *, threads: int = 1) -> None:
        self._bundle = bundle
        self._threads = threads

    @cached_property
    def shape(self) -> VideoShape:
        """Height, width and frames that the bundle was built for."""
        return VideoShape(**self._bundle.manifest.onnx.model.shape.model_dump())

    @cached_property
    def text_encoder(self) -> TextEncoder:
        if "text_encoder" not in self._bundle.manifest.onnx.graphs:
            raise BadInput(
                "bundle has no text encoder",
                where=str(self._bundle.root),
                fix="pass prompt_embeds, or build with --components dit,decoder,text_encoder",
            )
        executor = cpu_executor(self._bundle, "text_encoder", threads=self._threads)
        return TextEncoder.from_bundle(self._bundle, executor, self.dit.text_shape[1])

    @cached_property
    def dit(self) -> DiT[Array]:
        dit = DiT(
            cpu_executor(self._bundle, "text_kv", threads=self._threads),
            cpu_executor(self._bundle, "dit", threads=self._threads),
        )
        channels = dit.latents_shape[1]
        if dit.latents_shape != self.shape.latents(channels):
            raise BadInput(
                f"dit makes latents {list(dit.latents_shape)}, "
                f"the manifest says {list(self.shape.latents(channels))}",
                where=str(self._bundle.root),
                fix="build the bundle again",
            )
        return dit

    @cached_property
    def decoder(self) -> Decoder[Array]:
        return Decoder(cpu_executor(self._bundle, "decoder", threads=self._threads))
