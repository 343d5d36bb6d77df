"""The TAEHV decoder: latents to frames with small causal memories instead of a video VAE.

Architecture of https://github.com/madebyollin/taehv (the ``taew2_1`` weights of Wan 2.1), under
its tensor names ``decoder.<index>...``. Two things differ from the original without changing a
result: time is grown before space (a 1x1 convolution commutes with nearest-neighbour upsampling,
and works on a quarter of the pixels there), and the memories are explicit, so that one function
serves both the decoding of a whole video and one latent frame at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from fastwan.config import DecoderConfig

MEMORY_BLOCKS = 3
"""Memory blocks of each level that has them (all but the finest)."""


def conv3x3(inputs: int, outputs: int, *, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)


class Clamp(nn.Module):
    """Soft clamp of the latents to (-3, 3)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x / 3) * 3


class MemBlock(nn.Module):
    """Residual block that also sees its own input of the frame before, [N, C, H, W] each."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            conv3x3(2 * channels, channels),
            nn.ReLU(),
            conv3x3(channels, channels),
            nn.ReLU(),
            conv3x3(channels, channels),
        )

    def forward(self, x: torch.Tensor, past: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = F.relu(self.conv(torch.cat([x, past], 1)) + x)
        return out


class TGrow(nn.Module):
    """Makes `factor` frames of one, [N, C, H, W] -> [N * factor, C, H, W]."""

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels * factor, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, channels, height, width = x.shape
        out: torch.Tensor = self.conv(x)
        return out.reshape(-1, channels, height, width)


class TAEHVDecoder(nn.Module):
    """TAEHV's decoder.

    Args:
        config: channels and growth of the levels.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.channels
        layers: list[nn.Module] = [
            Clamp(),
            conv3x3(config.latent_channels, channels[0]),
            nn.ReLU(),
        ]
        for level, (frames, space) in enumerate(
            zip(config.time_growth, config.space_growth, strict=True)
        ):
            layers += [MemBlock(channels[level]) for _ in range(MEMORY_BLOCKS)]
            layers += [
                nn.Upsample(scale_factor=2 if space else 1),
                TGrow(channels[level], frames),
                conv3x3(channels[level], channels[level + 1], bias=False),
            ]
        layers += [nn.ReLU(), conv3x3(channels[-1], config.image_channels)]
        self.decoder = nn.Sequential(*layers)

    def memory_shapes(self, height: int, width: int, batch: int = 1) -> list[tuple[int, ...]]:
        """Shapes of the memories, [N, C, H, W] each, for latents of `height` x `width`."""
        shapes: list[tuple[int, ...]] = []
        for channels, space in zip(self.config.channels, self.config.space_growth, strict=False):
            shapes += [(batch, channels, height, width)] * MEMORY_BLOCKS
            if space:
                height, width = 2 * height, 2 * width
        return shapes

    def zero_memories(self, height: int, width: int, batch: int = 1) -> list[torch.Tensor]:
        """Memories before the first latent frame, in the dtype of the weights."""
        dtype = next(self.parameters()).dtype
        return [
            torch.zeros(shape, dtype=dtype) for shape in self.memory_shapes(height, width, batch)
        ]

    def step(
        self, latents: torch.Tensor, memories: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """`decode_step` with this decoder's layers."""
        return decode_step(self.decoder, latents, memories)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode whole videos, [N, T, C, h, w] -> [N, T * frames_per_latent, 3, H, W]."""
        batch, _, _, height, width = latents.shape
        frames, _ = self.step(latents, self.zero_memories(height, width, batch))
        return frames


def decode_step(
    layers: nn.Sequential, latents: torch.Tensor, memories: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Decode some frames of latents and hand on what the next ones need to know.

    Args:
        layers: `TAEHVDecoder.decoder`.
        latents: [N, T, C, h, w], normalised as the transformer makes them; T may be 1.
        memories: as `TAEHVDecoder.memory_shapes`; of the frame before the first one.

    Returns:
        frames [N, T * frames_per_latent, 3, H, W], not clamped, and the new memories.
    """
    batch = latents.shape[0]
    x = latents.flatten(0, 1)
    past_inputs = iter(memories)
    new: list[torch.Tensor] = []
    remaining = iter(layers)
    for layer in remaining:
        if isinstance(layer, MemBlock):
            past, memory = _shift(x, next(past_inputs), batch)
            new.append(memory)
            x = layer(x, past)
        elif isinstance(layer, nn.Upsample):
            # The 1x1 convolution of the TGrow that follows comes first; see the module's text.
            x = layer(next(remaining)(x))
        else:
            x = layer(x)
    return x.unflatten(0, (batch, -1)), new


def _shift(x: torch.Tensor, memory: torch.Tensor, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames [N * T, C, H, W] one frame later in time, and the last frame of each video."""
    if x.shape[0] == batch:
        return memory, x
    frames = x.unflatten(0, (batch, -1))
    past = torch.cat([memory.unsqueeze(1), frames[:, :-1]], 1)
    return past.flatten(0, 1), frames[:, -1]


def to_uint8(frames: torch.Tensor) -> torch.Tensor:
    """Pixels 0 to 255 of frames in [0, 1], truncated; the channel axis -3 becomes the last."""
    return (frames.clamp(0, 1) * 255).movedim(-3, -1).to(torch.uint8)


class StreamingStep(nn.Module):
    """The graph that is exported: one latent frame and memories to pixels and memories.

    ``forward(latent [1, C, h, w], *memories)`` returns ``(frames uint8 [F, H, W, 3],
    *memories)`` with F = frames_per_latent.
    """

    def __init__(self, model: TAEHVDecoder) -> None:
        super().__init__()
        # The same attribute name keeps the checkpoint's names in the graph.
        self.decoder = model.decoder

    def forward(self, latent: torch.Tensor, *memories: torch.Tensor) -> tuple[torch.Tensor, ...]:
        frames, new = decode_step(self.decoder, latent.unsqueeze(0), memories)
        return to_uint8(frames.squeeze(0)), *new
