"""The glue between GEMMs: random inputs of each kind of node, and what its kernel has to write."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastwan.errors import BadInput
from fastwan.plugins import glue_reference as reference
from fastwan.plugins.regions.base import dims
from fastwan.plugins.regions.gelu_quantize import GeluQuantize
from fastwan.plugins.regions.glue import GlueOp
from fastwan.plugins.regions.quantize import Quantize
from fastwan.plugins.regions.residual_norm_quantize import NormTensors, ResidualNormQuantize


def glue_inputs(op: GlueOp, device: str = "cpu", seed: int = 0) -> list[Tensor]:
    """Random inputs of a node, in its order."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(shape: Sequence[int]) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    return [normal(dims(spec)).to(getattr(torch, spec.dtype)) for spec in op.inputs]


def glue_outputs(op: GlueOp, device: str = "cpu") -> list[Tensor]:
    """Memory for a node's outputs, in its order; every byte is 0xA5."""
    outputs = []
    for spec in op.outputs:
        dtype = getattr(torch, spec.dtype)
        size = torch.Size(dims(spec)).numel() * dtype.itemsize
        garbage = torch.full((size,), 0xA5, dtype=torch.uint8, device=device)
        outputs.append(garbage.view(dtype).view(dims(spec)))
    return outputs


def reference_of(op: GlueOp) -> Callable[..., tuple[Tensor, ...]]:
    """What a node computes, in torch: a function of its inputs to its outputs.

    Raises:
        BadInput: a kind that has no reference.
    """
    if isinstance(op, GeluQuantize):
        return reference.gelu_quantize
    if isinstance(op, Quantize):
        return reference.quantize
    if isinstance(op, ResidualNormQuantize):
        attributes = op.attributes

        def norm(*tensors: Tensor) -> tuple[Tensor, ...]:
            first, rest = tensors[:3], tensors[3:]
            given = NormTensors(*first, *((None,) if len(rest) == 2 else ()), *rest)
            return reference.residual_norm_quantize(
                *given, eps=attributes.eps, add_one=attributes.add_one
            )

        return norm
    raise BadInput(f"no reference of {op}", where=op.op)


def difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> int:
    """Bytes of a node's outputs that are not those of the reference."""
    pairs = zip(found, expected, strict=True)
    return sum(int((a.view(torch.uint8) != b.view(torch.uint8)).sum()) for a, b in pairs)
