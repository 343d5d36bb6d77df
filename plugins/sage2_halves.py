"""SageAttention2++ in a loaded library, launch by launch: for tests and measurements."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastwan.plugins.loader import PluginLibrary
from fastwan.plugins.regions.sage_attention2 import Sage2Layout, SageAttention2
from fastwan.plugins.sage2_reference import Sage2Operands

PLACES = (0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15)
"""Token in 16 at each place of an e4m3 operand."""
WIDE_CAPABILITY = 90
"""Compute capability, 10 major + minor, that has v in fp16."""


class Sage2Run:
    """One region on a CUDA GPU, with an output and a workspace of its own.

    Args:
        library: that has the kernels.
        region: what is launched.
        inputs: on the GPU, in the order of the region's.
    """

    def __init__(
        self, library: PluginLibrary, region: SageAttention2, inputs: Sequence[Tensor]
    ) -> None:
        self.library, self.region, self.inputs = library, region, tuple(inputs)
        shape = (region.batch, region.length, region.channels)
        self.out = torch.full(shape, 7.0, dtype=torch.bfloat16, device=self.inputs[0].device)
        size = library.workspace_bytes(region)
        self.workspace = torch.full((size,), 0xA5, dtype=torch.uint8, device=self.out.device)

    def whole(self) -> Tensor:
        """All four launches; the output [B, L, C] bf16."""
        self.library.enqueue(
            self.region,
            [x.data_ptr() for x in self.inputs],
            [self.out.data_ptr()],
            self.workspace.data_ptr(),
            self.workspace.numel(),
            torch.cuda.current_stream().cuda_stream,
        )
        return self.out

    def prologue(self) -> None:
        """The launches that write the operands."""
        self.library.enqueue_prologue(
            self.region,
            [x.data_ptr() for x in self.inputs],
            [self.out.data_ptr()],
            self.workspace.data_ptr(),
            self.workspace.numel(),
            torch.cuda.current_stream().cuda_stream,
        )

    def attention(self) -> None:
        """The launch over operands that are in the workspace."""
        self.library.enqueue_attention(
            self.region,
            [self.out.data_ptr()],
            self.workspace.data_ptr(),
            self.workspace.numel(),
            torch.cuda.current_stream().cuda_stream,
        )

    def operands(self, like: Sage2Operands) -> Sage2Operands:
        """What the prologue wrote, on the CPU.

        Args:
            like: operands of the shapes to expect.
        """
        major, minor = torch.cuda.get_device_capability(self.out.device)
        wide = 10 * major + minor == WIDE_CAPABILITY
        layout = self.library.layout(self.region)
        return stored_operands(self.workspace.cpu(), layout, like, wide=wide)


def stored_operands(
    workspace: Tensor, layout: Sage2Layout, shapes: Sage2Operands, *, wide: bool
) -> Sage2Operands:
    """Operands in a workspace, in the order of the reference.

    Args:
        workspace: uint8 on the CPU.
        shapes: operands of the shapes to expect.
        wide: whether v is fp16, see `WIDE_CAPABILITY`.
    """
    batch, heads, padded, _ = shapes.q.shape

    def floats(offset: int, like: Tensor) -> Tensor:
        part = workspace[offset : offset + like.numel() * 4]
        return part.view(torch.float32).view(like.shape)

    def rows(offset: int) -> Tensor:
        part = workspace[offset : offset + shapes.q.numel()]
        tiles = part.view(batch, heads, padded, 8, 16)
        return _unswizzled(tiles).reshape(shapes.q.shape).view(torch.int8)

    size = shapes.v.numel() * (2 if wide else 1)
    tiles = workspace[layout.v : layout.v + size]
    tiles = _unswizzled(tiles.view(batch, heads, padded // 64, 128, 8 if wide else 4, 16))
    if wide:
        values = tiles.flatten(-2).view(torch.float16).float() / 256
        values = values.to(torch.float8_e4m3fn)
    else:
        order = torch.tensor(PLACES).argsort()
        values = tiles[..., order].flatten(-2).view(torch.float8_e4m3fn)
    values = values.permute(0, 1, 3, 2, 4).reshape(shapes.v.shape)
    return Sage2Operands(
        rows(layout.q),
        floats(layout.q_scale, shapes.q_scale),
        rows(layout.k),
        floats(layout.k_scale, shapes.k_scale),
        values,
        floats(layout.v_scale, shapes.v_scale),
    )


def differing_bytes(found: Sage2Operands, wanted: Sage2Operands) -> dict[str, int]:
    """Bytes of each operand that differ; both on one device."""
    pairs = zip(Sage2Operands._fields, found, wanted, strict=True)
    return {name: int((_bytes(a) != _bytes(b)).sum()) for name, a, b in pairs}


def _bytes(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.uint8)


def _unswizzled(tiles: Tensor) -> Tensor:
    """Rows [.., R, P, 16] of 16-byte pieces as the kernel stores them, in order."""
    rows = torch.arange(tiles.shape[-3])
    pieces = torch.arange(tiles.shape[-2])
    turn = rows % 8 if len(pieces) == 8 else rows // 2 % 4
    origin = pieces.unsqueeze(0) ^ turn.unsqueeze(1)
    return torch.gather(tiles, -2, origin.unsqueeze(-1).expand(tiles.shape))
