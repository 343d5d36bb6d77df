"""ComfyUI's types IMAGE, LATENT and CONDITIONING, and what the runtime has in their place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastwan.comfyui import host
from fastwan.config import VideoShape
from fastwan.errors import BadInput, shown
from fastwan.runtime.model.executor import Array

if TYPE_CHECKING:
    import torch

# Mean and standard deviation of each channel over Wan's training set: wan/modules/vae.py of
# Wan 2.1, and latents_mean and latents_std of its vae/config.json in diffusers.
_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip


class ImageFrames:
    """Frames that become an IMAGE, fp32 [F, H, W, 3] in 0..1, as they are decoded.

    A value is ``level / 255``: times 255, cut or rounded, it is that level again.

    Args:
        shape: of the video.
    """

    def __init__(self, shape: VideoShape) -> None:
        self._images = np.empty((shape.num_frames, shape.height, shape.width, 3), np.float32)
        self._filled = 0

    def add(self, frames: Array) -> None:
        """Add the next frames, uint8 [n, H, W, 3]."""
        place = self._images[self._filled : self._filled + len(frames)]
        np.divide(frames, np.float32(255), out=place, dtype=np.float32)
        self._filled += len(frames)

    def image(self) -> torch.Tensor:
        """The IMAGE, when every frame was added."""
        import torch

        assert self._filled == len(self._images)
        return torch.from_numpy(self._images).to(host.result_device())


def latent_of(latents: torch.Tensor) -> dict[str, Any]:
    """A LATENT as ComfyUI's samplers make it and its VAE takes it: not normalised.

    Args:
        latents: normalised, fp32 [1, 16, T, h, w].
    """
    mean, std = _statistics()
    return {"samples": (latents.double() * std + mean).float().to(host.result_device())}


def latents_of(latent: object) -> torch.Tensor:
    """Normalised latents, fp32 [1, 16, T, h, w], of a LATENT.

    Raises:
        BadInput: not of Wan 2.1.
    """
    import torch

    samples = latent.get("samples") if isinstance(latent, dict) else None
    if not isinstance(samples, torch.Tensor):
        raise BadInput(f"{shown(latent)} is no LATENT", where="latent")
    if samples.ndim != 5 or samples.shape[1] != len(_MEAN):
        raise BadInput(
            f"latents have shape {list(samples.shape)}, not [1, {len(_MEAN)}, T, h, w]",
            where="latent",
            fix="connect latents of Wan 2.1",
        )
    mean, std = _statistics()
    return ((samples.detach().cpu().double() - mean) / std).float()


def _statistics() -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    mean, std = torch.tensor([_MEAN, _STD], dtype=torch.float64).reshape(2, 1, len(_MEAN), 1, 1, 1)
    return mean, std


def conditioning_of(embeds: Array) -> list[Any]:
    """A CONDITIONING, as ComfyUI's text encoders make it.

    Args:
        embeds: [1, text_length, text_dim].
    """
    import torch

    return [[torch.from_numpy(embeds.astype(np.float32)), {}]]


def embeds_of(conditioning: object) -> torch.Tensor:
    """Embeddings [1, L, text_dim] of a CONDITIONING.

    Raises:
        BadInput: none, or several that would be mixed.
    """
    import torch

    parts = conditioning if isinstance(conditioning, list) else []
    if len(parts) != 1:
        raise BadInput(
            f"a conditioning of {len(parts)} parts",
            where="conditioning",
            fix="connect that of one prompt: a video has one",
        )
    embeds = parts[0][0]
    if not isinstance(embeds, torch.Tensor) or embeds.ndim != 3 or embeds.shape[0] != 1:
        raise BadInput(f"no embeddings of one prompt: {shown(embeds)}", where="conditioning")
    return embeds
