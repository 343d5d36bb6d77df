"""What the nodes ask of the ComfyUI that they run in; nothing else here imports it.

Modules are looked up when they are needed, so that this package imports without ComfyUI. Where an
older ComfyUI lacks something, the node does without it.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastwan.errors import EnvironmentLacks

if TYPE_CHECKING:
    import torch
    from PIL import Image

FOLDER = "fastwan"
"""Kind of model folder: ``models/fastwan``, or another one of ``extra_model_paths.yaml``."""

_PREVIEW_PIXELS = 512
"""Longest side of a picture that is shown on a node, as for ComfyUI's own samplers."""


def _module(name: str) -> Any:
    return importlib.import_module(name)


def model_folders() -> list[Path]:
    """Folders that bundles are looked for in, in ComfyUI's order; its configuration adds others."""
    paths = _module("folder_paths")
    paths.add_model_folder_path(FOLDER, str(Path(paths.models_dir) / FOLDER))
    return [Path(each) for each in paths.get_folder_paths(FOLDER)]


def stop_if_asked() -> None:
    """Raise what ends a prompt where the user pressed its button."""
    _module("comfy.model_management").throw_exception_if_processing_interrupted()


def show_text(text: str, node_id: str | None) -> None:
    """Write a line below a node; an older ComfyUI shows none."""
    with contextlib.suppress(ImportError, AttributeError):
        server = _module("server").PromptServer.instance
        server.send_progress_text(text, node_id, server.client_id)


class Bar:
    """The progress bar of the node that runs."""

    def __init__(self) -> None:
        self._bar = _module("comfy.utils").ProgressBar(1)

    def show(self, done: int, total: int, picture: Image.Image | None = None) -> None:
        """Set the bar, and show a picture on the node."""
        preview = None if picture is None else ("JPEG", picture, _PREVIEW_PIXELS)
        self._bar.update_absolute(done, total, preview)


def latent_preview() -> Callable[[torch.Tensor], Image.Image] | None:
    """What makes a picture of latents between steps; None where the user wants none.

    It is ComfyUI's own for this model, as its setting of previews says. The latents are
    normalised, [1, 16, T, h, w].
    """
    try:
        formats = _module("comfy.latent_formats")
        previewer = _module("latent_preview").get_previewer(_cpu(), formats.Wan21())
    except (ImportError, AttributeError):
        return None
    if previewer is None:
        return None

    def picture(latents: torch.Tensor) -> Image.Image:
        made: Image.Image = previewer.decode_latent_to_preview(latents)
        return made

    return picture


def _cpu() -> torch.device:
    import torch

    return torch.device("cpu")


def result_device() -> torch.device:
    """Where ComfyUI keeps what one node hands to another."""
    device: torch.device = _module("comfy.model_management").intermediate_device()
    return device


def compute_device() -> torch.device:
    """The device whose memory ComfyUI plans."""
    device: torch.device = _module("comfy.model_management").get_torch_device()
    return device


def load_models(patchers: Sequence[Any]) -> None:
    """Have ComfyUI make room for models, at the cost of others, and count them as loaded."""
    management = _module("comfy.model_management")
    management.load_models_gpu(list(patchers))
    # Blocks that torch keeps for itself are no room for an engine.
    management.soft_empty_cache()


def settle_emulation() -> None:
    """Undo what ComfyUI does to torch and the emulated device computes with.

    Raises:
        EnvironmentLacks: an allocator of GPU memory that knows no pools.
    """
    import torch

    backend = torch.cuda.get_allocator_backend()
    if backend == "cudaMallocAsync":
        raise EnvironmentLacks(
            f"the emulated device takes GPU memory from a pool of torch's, {backend} has none",
            where="device emulated",
            fix="start ComfyUI with --disable-cuda-malloc",
        )
    # ComfyUI lets attention without a fused kernel add in bf16: other numbers than elsewhere.
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(False)


def model_patcher() -> Any:
    """The class whose objects ComfyUI loads and unloads."""
    return _module("comfy.model_patcher").ModelPatcher


def video_of(images: torch.Tensor, fps: int) -> Any:
    """An object of the type VIDEO.

    Args:
        images: [frames, H, W, 3] in 0..1.
    """
    latest = _module("comfy_api.latest")
    components = latest.Types.VideoComponents(images=images, frame_rate=Fraction(fps))
    return latest.InputImpl.VideoFromComponents(components)


def has_video() -> bool:
    """Whether this ComfyUI has the type VIDEO."""
    try:
        latest = _module("comfy_api.latest")
    except ImportError:
        return False
    return hasattr(latest, "Types") and hasattr(latest.InputImpl, "VideoFromComponents")
