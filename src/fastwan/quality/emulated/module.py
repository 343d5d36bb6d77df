"""The torch module on a device: block by block, quantised or not, with its scales moved or not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from fastwan.export.attentions import EXACT, Form
from fastwan.export.models.layers import rope_tables
from fastwan.export.models.wan import WanDiT
from fastwan.plugins.loader import PluginLibrary
from fastwan.plugins.regions.sage_attention3 import SageAttention3, SageAttributes
from fastwan.quality.verify.modules import dit_module, moved_scales, scale_names
from fastwan.quality.verify.subject import Subject
from fastwan.runtime.model.executor import Array

MOVED_BY = 2.0**-17
"""What another order makes of an fp32 sum of thousands of products, sqrt(8960) 2^-24, about."""


class Reference:
    """The transformer of a bundle at its own size.

    Args:
        subject: its `check_shape` is the bundle's own shape.
        attention: what its quantised self-attention computes.
        device: where it runs.
    """

    def __init__(self, subject: Subject, attention: Form, device: torch.device) -> None:
        self._attention, self._device = attention, device
        self.module: WanDiT = dit_module(
            subject, torch.bfloat16, activations=subject.recipe.quantised, attention=attention
        ).to(device)
        cos, sin = rope_tables(subject.shape, subject.dit_config.head_dim)
        self._rope = cos.to(device), sin.to(device)
        self._scales = scale_names(subject.recipe)

    @contextmanager
    def unquantised(self) -> Iterator[None]:
        """Without activation quantisers and with exact attention, over the same weights."""
        self.module.set_quantizers(activations=False, attention=EXACT)
        try:
            yield
        finally:
            self.module.set_quantizers(activations=True, attention=self._attention)

    @contextmanager
    def moved(self, trial: int) -> Iterator[None]:
        """With every fp32 scale of a weight moved by `MOVED_BY` of itself, up or down."""
        generator = torch.Generator().manual_seed(trial)

        def move(scale: Tensor, up: Tensor) -> Tensor:
            return scale * torch.where(up, 1 + MOVED_BY, 1 - MOVED_BY)

        with moved_scales(self.module, self._scales, generator, move):
            yield

    @torch.no_grad()
    def context(self, text: Array) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of a prompt, for each block."""
        embeds = torch.from_numpy(text).to(self._device, torch.bfloat16)
        context = self.module.text_embed(embeds)
        return [text_kv(context) for text_kv in self.module.text_kv]

    @torch.no_grad()
    def block(
        self, index: int, hidden: Tensor, timestep: int, context: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """Hidden states behind a block, for those before it."""
        _, projected = self._times(timestep)
        block = self.module.blocks[index]
        return cast(Tensor, block(hidden, projected, *context[index], *self._rope))

    @torch.no_grad()
    def velocity(
        self, latents: Array, timestep: int, context: list[tuple[Tensor, Tensor]]
    ) -> Array:
        """fp32 velocity of the whole transformer."""
        temb, projected = self._times(timestep)
        x = torch.from_numpy(latents).to(self._device, torch.bfloat16)
        hidden = self.module.embed.tokens(x)
        for block, keys in zip(self.module.blocks, context, strict=True):
            hidden = block(hidden, projected, *keys, *self._rope)
        return np.asarray(self.module.head(hidden, temb).float().cpu().numpy())

    def _times(self, timestep: int) -> tuple[Tensor, Tensor]:
        moment = torch.tensor([float(timestep)], device=self._device)
        return self.module.embed.time_tables(moment)


@dataclass(frozen=True)
class _Launch:
    """The plugin library's kernel as a function of torch tensors."""

    library: PluginLibrary
    processors: int

    def __call__(
        self,
        *tensors: Tensor,
        num_heads: int,
        num_tokens: int,
        eps: float,
        softmax_scale: float,
        exact_max: bool = False,
    ) -> Tensor:
        qkv = tensors[0]
        attributes = SageAttributes(
            num_heads=num_heads, num_tokens=num_tokens, eps=eps, softmax_scale=softmax_scale,
            exact_max=exact_max,
        )  # fmt: skip
        region = SageAttention3(qkv.shape[0], qkv.shape[1], attributes, processors=self.processors)
        held = [tensor.contiguous() for tensor in tensors]
        out = torch.empty((*qkv.shape[:2], region.channels), dtype=qkv.dtype, device=qkv.device)
        workspace = torch.empty(region.workspace_bytes, dtype=torch.uint8, device=qkv.device)
        self.library.enqueue(
            region,
            [tensor.data_ptr() for tensor in held],
            [out.data_ptr()],
            workspace.data_ptr(),
            workspace.numel(),
            torch.cuda.current_stream().cuda_stream,
        )
        return out


def kernel_form(library: PluginLibrary, processors: int) -> Form:
    """Attention by the kernel whose regions are held against their reference beside.

    Args:
        processors: multiprocessors that it is launched for, as the regions are.
    """
    return Form("kernel", _Launch(library, processors))
