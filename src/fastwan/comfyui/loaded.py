"""A bundle that was opened for nodes: what the type FASTWAN carries from one to another."""

from __future__ import annotations

import weakref
from typing import Any

from fastwan.bundle import Bundle
from fastwan.comfyui import folders, host
from fastwan.comfyui.memory import memory_of
from fastwan.config import VideoShape
from fastwan.files import sha256_file
from fastwan.manifest import MANIFEST
from fastwan.runtime.pipeline import FastWanPipeline
from fastwan.runtime.recording.memory_plan import bundle_memory
from fastwan.shapes import shape_text


class LoadedBundle:
    """A pipeline, and its place in ComfyUI's list of models.

    Engines are opened by the first node that plays them, and again after ComfyUI took their memory
    back. They are closed for good with the last reference to this object, which ComfyUI keeps as
    the result of a node.
    """

    def __init__(self, bundle: Bundle, device: str) -> None:
        self.bundle = bundle
        shape = self.shape
        self._pipeline = FastWanPipeline.from_bundle(
            bundle.root,
            device,
            height=shape.height,
            width=shape.width,
            num_frames=shape.num_frames,
        )
        weakref.finalize(self, self._pipeline.close)
        name = self._pipeline.choice.name
        if name == "emulated":
            host.settle_emulation()
        size = 0 if name == "cpu" else bundle_memory(bundle).total
        self._memory = memory_of(size, self._pipeline.unload)

    @property
    def shape(self) -> VideoShape:
        """Height, width and frames of the videos."""
        return self.bundle.manifest.onnx.model.shape

    @property
    def pipeline(self) -> FastWanPipeline:
        """The pipeline, with memory that ComfyUI counts as its own."""
        host.load_models([self._memory])
        return self._pipeline

    def __repr__(self) -> str:
        return self.description.replace("\n", "; ")

    @property
    def description(self) -> str:
        """What it makes and is, and what plays it: two lines, as wide as a node."""
        manifest = self.bundle.manifest
        model, shapes = manifest.onnx.model, ", ".join(map(shape_text, manifest.video_shapes))
        return (
            f"{shapes}; {model.name}\n"
            f"{model.recipe}, {manifest.attention} attention; {self._device}"
        )

    @property
    def _device(self) -> str:
        choice = self._pipeline.choice
        if choice.name == "cpu":
            return "CPU, there is no GPU" if choice.note else "CPU"
        return choice.name


_open: weakref.WeakValueDictionary[tuple[Any, ...], LoadedBundle] = weakref.WeakValueDictionary()


def load(choice: str, device: str) -> LoadedBundle:
    """Open the chosen bundle, once for all nodes that name it.

    Args:
        choice: see `fastwan.comfyui.folders`.
        device: "auto", "cpu", "cuda" or "emulated".

    Raises:
        BadInput: no such bundle or shape, or a device of another name.
        EnvironmentLacks: the device cannot be used.
        VerificationFailed: a file of the bundle has another size than its manifest says.
    """
    bundle = folders.chosen(choice)
    manifest = sha256_file(bundle.folder / MANIFEST)
    shape = bundle.manifest.onnx.model.shape
    key = (bundle.root, manifest, shape, device)
    found = _open.get(key)
    if found is None:
        found = _open[key] = LoadedBundle(bundle, device)
    return found
