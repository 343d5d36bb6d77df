"""The nodes. Each is a class as ComfyUI's custom nodes are; tooltips are its documentation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

from fastwan.comfyui import convert, folders, host
from fastwan.comfyui.loaded import LoadedBundle, load
from fastwan.comfyui.progress import NodeProgress
from fastwan.config import SAMPLERS
from fastwan.errors import BadInput, EnvironmentLacks, FastWanError
from fastwan.failures import UNEXPECTED, explain
from fastwan.runtime.arguments import chosen_shape, padded_embeds
from fastwan.runtime.device.choice import DEVICES
from fastwan.runtime.encoder import FPS
from fastwan.runtime.model.noise import DEFAULT_SEED
from fastwan.runtime.request import Request
from fastwan.shapes import shape_text

P = ParamSpec("P")
R = TypeVar("R")

BUNDLE = "FASTWAN"
CATEGORY = "FastWan"
OWN = "bundle's own"
"""Sampler that stands for the first of the bundle."""

_VIDEO = ("VIDEO",) if host.has_video() else ()

Inputs = dict[str, dict[str, Any]]

_PROMPT = (
    "STRING",
    {"multiline": True, "dynamicPrompts": True, "default": "",
     "tooltip": "Not read where a conditioning is connected."},
)  # fmt: skip


def told(function: Callable[P, R]) -> Callable[P, R]:
    """Have a node fail with one line that says what is wrong, where, and how to mend it.

    The line is shown below the node, too: ComfyUI's page has it two clicks away.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            line, code = explain(error)
            if code == UNEXPECTED:  # a fault of the program: its traceback is what helps
                raise
            host.show_text(line, cast("str | None", kwargs.get("node_id")))
            if isinstance(error, FastWanError):
                raise
            kind = EnvironmentLacks if code == EnvironmentLacks.exit_code else BadInput
            raise kind(line) from error

    return run


class LoadBundle:
    """Choose a bundle, a shape and a device."""

    CATEGORY = CATEGORY
    FUNCTION = "load"
    RETURN_TYPES = (BUNDLE, "INT", "INT", "INT")
    RETURN_NAMES = ("bundle", "width", "height", "num_frames")
    DESCRIPTION = (
        "Opens a bundle of FastWan engines. Its engines take memory when a node plays them."
    )

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "bundle": (
                    folders.choices(),
                    {"tooltip": "Folder in models/fastwan, and what it makes: width x height x "
                     "frames. The engines are built for that alone."},
                ),
                "device": (
                    list(DEVICES),
                    {"tooltip": "auto: the GPU, or without one the CPU reference, which is slow. "
                     "emulated: a Blackwell GPU's numbers on a Hopper GPU."},
                ),
            },
            "hidden": {"node_id": "UNIQUE_ID"},
        }  # fmt: skip

    @classmethod
    def VALIDATE_INPUTS(cls, bundle: str) -> bool:
        """Leave it to `load` to refuse a bundle: ComfyUI's page shows what a node raises, and of
        what this returned that there was something alone.
        """
        return True

    @classmethod
    def IS_CHANGED(cls, bundle: str, **_: Any) -> str:
        """Another value where the bundle was built again; empty for one that `load` refuses."""
        try:
            return folders.fingerprint(bundle)
        except (FastWanError, OSError):
            return ""

    @told
    def load(self, bundle: str, device: str, node_id: str | None = None) -> tuple[Any, ...]:
        opened = load(bundle, device)
        host.show_text(opened.description, node_id)
        shape = opened.shape
        return opened, shape.width, shape.height, shape.num_frames


class TextToVideo:
    """A prompt to frames and latents."""

    CATEGORY = CATEGORY
    FUNCTION = "make"
    RETURN_TYPES = ("IMAGE", "LATENT", *_VIDEO)
    RETURN_NAMES = ("images", "latent", *map(str.lower, _VIDEO))
    DESCRIPTION = "Makes a video of the bundle's shape. The same seed makes the same video."

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        shape = {"forceInput": True, "tooltip": "The bundle's own where nothing is connected; of "
                 "a bundle with several shapes, which one. Others are refused."}  # fmt: skip
        return {
            "required": {
                "bundle": (BUNDLE,),
                "prompt": _PROMPT,
                "seed": (
                    "INT",
                    {"default": DEFAULT_SEED, "min": 0, "max": 2**64 - 1,
                     "control_after_generate": True, "tooltip": "Of the noise."},
                ),
                "sampler": (
                    [OWN, *SAMPLERS],
                    {"tooltip": "One that the bundle's model was trained for."},
                ),
            },
            "optional": {
                "conditioning": (
                    "CONDITIONING",
                    {"tooltip": "In place of the prompt: of FastWan prompt embeds, or of ComfyUI's "
                     "own encoder with UMT5 (CLIPLoader, type wan)."},
                ),
                "negative_prompt": (
                    "STRING",
                    {"forceInput": True,
                     "tooltip": "Of samplers with guidance; a distilled model has none."},
                ),
                "guidance_scale": (
                    "FLOAT",
                    {"forceInput": True, "tooltip": "The sampler's own if nothing is connected."},
                ),
                "width": ("INT", shape),
                "height": ("INT", shape),
                "num_frames": ("INT", shape),
            },
            "hidden": {"node_id": "UNIQUE_ID"},
        }  # fmt: skip

    @told
    def make(
        self,
        bundle: LoadedBundle,
        prompt: str,
        seed: int,
        sampler: str,
        conditioning: Any = None,
        negative_prompt: str | None = None,
        guidance_scale: float | None = None,
        width: int | None = None,
        height: int | None = None,
        num_frames: int | None = None,
        node_id: str | None = None,
    ) -> tuple[Any, ...]:
        shapes = bundle.bundle.manifest.video_shapes
        shape = chosen_shape(shapes, width=width, height=height, num_frames=num_frames)
        host.show_text(f"{shape_text(shape)}, {FPS} frames a second", node_id)
        frames = convert.ImageFrames(shape)
        progress = NodeProgress(frames.add)
        given = conditioning is not None
        request = Request(
            prompt=None if given else prompt,
            prompt_embeds=convert.embeds_of(conditioning) if given else None,
            negative_prompt=negative_prompt,
            guidance_scale=guidance_scale,
            seed=seed,
            sampler=None if sampler == OWN else sampler,
            width=width,
            height=height,
            num_frames=num_frames,
            output_type="uint8",
            on_step=progress.after_step,
            on_frames=progress.after_frames,
        )
        bundle.pipeline.stream(request, progress=progress)
        assert progress.latents is not None
        return _with_video(frames.image(), convert.latent_of(progress.latents))


class PromptEmbeds:
    """A prompt, or ComfyUI's encoding of one, as the model reads it."""

    CATEGORY = CATEGORY
    FUNCTION = "embed"
    RETURN_TYPES = ("CONDITIONING",)
    RETURN_NAMES = ("conditioning",)
    DESCRIPTION = (
        "Encodes a prompt with the bundle's own text encoder, or takes what ComfyUI's UMT5 made "
        "of it, as the bundle's model reads it."
    )

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "bundle": (BUNDLE,),
                "prompt": _PROMPT,
            },
            "optional": {
                "conditioning": (
                    "CONDITIONING",
                    {"tooltip": "Of CLIP Text Encode with UMT5: for a bundle without an encoder."},
                ),
            },
            "hidden": {"node_id": "UNIQUE_ID"},
        }  # fmt: skip

    @told
    def embed(
        self,
        bundle: LoadedBundle,
        prompt: str,
        conditioning: Any = None,
        node_id: str | None = None,
    ) -> tuple[Any, ...]:
        pipeline = bundle.pipeline
        if conditioning is None:
            embeds = pipeline.embed(prompt)
        else:
            given = convert.embeds_of(conditioning)
            embeds = padded_embeds(given, pipeline.components.text_shape)
        return (convert.conditioning_of(embeds),)


class DecodeLatent:
    """Latents of any node to frames."""

    CATEGORY = CATEGORY
    FUNCTION = "decode"
    RETURN_TYPES = ("IMAGE", *_VIDEO)
    RETURN_NAMES = ("images", *map(str.lower, _VIDEO))
    DESCRIPTION = "Decodes latents of Wan 2.1, of the bundle's shape, with its decoder."

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {"bundle": (BUNDLE,), "latent": ("LATENT",)},
            "hidden": {"node_id": "UNIQUE_ID"},
        }

    @told
    def decode(
        self, bundle: LoadedBundle, latent: Any, node_id: str | None = None
    ) -> tuple[Any, ...]:
        latents = convert.latents_of(latent)
        frames = convert.ImageFrames(bundle.shape)
        progress = NodeProgress(frames.add)
        decoded = bundle.pipeline.decode(
            latents, progress=progress, on_frames=progress.after_frames
        )
        for _ in decoded:
            pass
        return _with_video(frames.image())


def _with_video(images: Any, *rest: Any) -> tuple[Any, ...]:
    """A node's results, with a VIDEO at their end where ComfyUI has that type."""
    return (images, *rest, *(host.video_of(images, FPS) for _ in _VIDEO))


NODE_CLASS_MAPPINGS: dict[str, type[Any]] = {
    "FastWanLoadBundle": LoadBundle,
    "FastWanTextToVideo": TextToVideo,
    "FastWanPromptEmbeds": PromptEmbeds,
    "FastWanDecode": DecodeLatent,
}
"""What ComfyUI reads: nodes by the name that workflows have."""

NODE_DISPLAY_NAME_MAPPINGS = {
    "FastWanLoadBundle": "Load FastWan bundle",
    "FastWanTextToVideo": "FastWan text to video",
    "FastWanPromptEmbeds": "FastWan prompt embeds",
    "FastWanDecode": "FastWan decode",
}
"""What its page shows."""
