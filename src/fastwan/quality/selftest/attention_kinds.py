"""What the stages ask of each kind of attention: one row of `KINDS` a kind of region."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from fastwan.plugins import packing, prologue_reference, sage2_halves, sage2_reference
from fastwan.plugins.regions.attention import AttentionRegion, SageTensors
from fastwan.plugins.regions.sage_attention2 import Sage2Attributes, Sage2Layout, SageAttention2
from fastwan.plugins.regions.sage_attention3 import SageAttention3, SageAttributes, SageLayout
from fastwan.quality.selftest.report import Kind

R = TypeVar("R", bound=AttentionRegion[Any, Any])
Operands = packing.Operands | sage2_reference.Sage2Operands
"""What a prologue writes."""


class Stored(NamedTuple):
    """Operands as a prologue left them.

    Attributes:
        workspace: uint8, on any device.
        layout: where they lie.
        like: operands of the shapes to expect.
        emulated: whether a library wrote them that emulates FP4.
        compute_capability: that they were written for, 10 major + minor.
    """

    workspace: Tensor
    layout: ctypes.Structure
    like: Operands
    emulated: bool
    compute_capability: int


@dataclass(frozen=True)
class AttentionKind(Generic[R]):
    """One kind of attention.

    Attributes:
        at: a node with as many heads, other true tokens and rows.
        modes: the node in each way that its kernel computes it, by a name of the way.
        operands: what the prologue has to write for inputs on the CPU.
        stored: reads them from where it wrote them, onto the CPU.
        limits: largest relative L2 difference of the output from the reference, by kind of machine.
        host_source: device code of the prologue that compiles for a processor.
        host_prefix: of its functions.
        host_capability: compute capability whose operands they write.
    """

    at: Callable[[R, int, int], R]
    modes: Callable[[R], Mapping[str, R]]
    operands: Callable[[R, Sequence[Tensor]], Operands]
    stored: Callable[[Stored], Operands]
    limits: Mapping[Kind, float]
    host_source: str
    host_prefix: str
    host_capability: int


def expected_operands(region: SageAttention3, inputs: Sequence[Tensor]) -> packing.Operands:
    """What the prologue of the FP4 attention has to write, on the CPU."""
    attributes = region.attributes
    rows = prologue_reference.prologue(
        *SageTensors(*inputs),
        num_heads=attributes.num_heads,
        num_tokens=attributes.num_tokens,
        eps=attributes.eps,
    )
    return packing.pack_operands(*(x[:, : attributes.num_tokens] for x in rows))


def stored_operands(
    workspace: Tensor, layout: SageLayout, shapes: packing.Operands, emulated: bool
) -> packing.Operands:
    """Packed operands in a workspace.

    Args:
        workspace: uint8, on any device.
        shapes: operands of the shapes to expect.
        emulated: whether an emulated library laid them out: rows of k and pieces of v of 64 bytes
            then lie 128 bytes apart.
    """
    parts = []
    for name, like in zip(packing.Operands._fields, shapes, strict=True):
        apart = 128 if emulated and name in ("k", "v") else 64
        begin = workspace.storage_offset() + getattr(layout, name)
        flat = workspace.as_strided((like.numel() // 64, 64), (apart, 1), begin)
        parts.append(flat.reshape(like.shape).cpu())
    return packing.Operands(*parts)


def _sage3_at(region: SageAttention3, tokens: int, rows: int) -> SageAttention3:
    return SageAttention3(1, rows, SageAttributes(region.attributes.num_heads, tokens))


def _sage3_modes(region: SageAttention3) -> dict[str, SageAttention3]:
    def mode(exact_max: bool) -> SageAttention3:
        old = region.attributes
        return replace(
            region, attributes=SageAttributes(old.num_heads, old.num_tokens, exact_max=exact_max)
        )

    return {"published maxima": mode(False), "exact maxima": mode(True)}


def _sage3_stored(stored: Stored) -> packing.Operands:
    assert isinstance(stored.layout, SageLayout)
    return stored_operands(
        stored.workspace, stored.layout, packing.Operands(*stored.like), stored.emulated
    )


def _sage2_at(region: SageAttention2, tokens: int, rows: int) -> SageAttention2:
    old = region.attributes
    attributes = Sage2Attributes(old.num_heads, tokens, old.per_warp, row_scaled=old.row_scaled)
    return SageAttention2(1, rows, attributes)


def _sage2_modes(region: SageAttention2) -> dict[str, SageAttention2]:
    def mode(per_warp: bool) -> SageAttention2:
        return replace(region, attributes=replace(region.attributes, per_warp=per_warp))

    return {"scales of a thread": mode(False), "scales of a warp": mode(True)}


def _sage2_operands(
    region: SageAttention2, inputs: Sequence[Tensor]
) -> sage2_reference.Sage2Operands:
    attributes, kinds = region.attributes, sage2_reference.Granularity
    rows = sage2_reference.true_rows(
        *inputs,
        num_heads=attributes.num_heads,
        num_tokens=attributes.num_tokens,
        eps=attributes.eps,
    )
    return sage2_reference.quantise(*rows, kinds.WARP if attributes.per_warp else kinds.THREAD)


def _sage2_stored(stored: Stored) -> sage2_reference.Sage2Operands:
    assert isinstance(stored.layout, Sage2Layout)
    return sage2_halves.stored_operands(
        stored.workspace.cpu(),
        stored.layout,
        sage2_reference.Sage2Operands(*stored.like),
        wide=stored.compute_capability == sage2_halves.WIDE_CAPABILITY,
    )


SAGE3 = AttentionKind(
    at=_sage3_at,
    modes=_sage3_modes,
    operands=expected_operands,
    stored=_sage3_stored,
    # Emulated, only the order of sums and ``ex2.approx`` differ; a GPU's own FP4 MMA has not been
    # seen.
    limits={"emulated": SageAttention3.limit, "cuda": 2e-2},
    host_source="emulate_prologue.cpp",
    host_prefix="fastwan_emulate",
    host_capability=120,
)

SAGE2 = AttentionKind(
    at=_sage2_at,
    modes=_sage2_modes,
    operands=_sage2_operands,
    stored=_sage2_stored,
    # Compute capability 9.0 has been seen; an MMA on e4m3 with fp16 sums has not.
    limits={"emulated": SageAttention2.limit, "cuda": 5 * SageAttention2.limit},
    host_source="emulate_sage2.cpp",
    host_prefix="fastwan_emulate_sage2",
    host_capability=89,
)

KINDS: dict[str, AttentionKind[Any]] = {SageAttention3.op: SAGE3, SageAttention2.op: SAGE2}
"""By the type of the node."""


def differing_bytes(found: Tensor, expected: Tensor) -> int:
    """Number of bytes that differ."""
    flat = [each.contiguous().view(torch.uint8) for each in (found, expected)]
    return int((flat[0] != flat[1]).sum())
