"""ONNX operators in torch, of those that an exported graph is made of.

Shapes, axes and indices are integers in host memory, so that nothing waits for the device; every
other tensor lies where the graph runs. Results may be views of the operands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastwan.errors import BadInput
from fastwan.runtime.emulated import fp4
from fastwan.runtime.emulated.fp4 import BlockScale, Codes, Operand

Value = Tensor | Codes | BlockScale | Operand

DTYPES: dict[int, torch.dtype] = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 6: torch.int32, 7: torch.int64,
    9: torch.bool, 10: torch.float16, 11: torch.float64, 16: torch.bfloat16,
}  # fmt: skip
"""By ONNX's ``TensorProto.DataType``."""


@dataclass(frozen=True)
class Node:
    """One operator of a graph.

    Attributes:
        inputs: names of values; empty for one that is left out.
    """

    op: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)


def plain(value: Value) -> Tensor:
    """A value as a tensor: an operand of a quantised GEMM that something else reads, too."""
    if isinstance(value, Operand):
        return value.values().to(torch.bfloat16)
    if isinstance(value, Tensor):
        return value
    raise BadInput(f"a quantised tensor is read as {type(value).__name__}", where="emulated")


def integers(value: Value) -> list[int]:
    """A shape, axes or indices."""
    found: list[int] = plain(value).reshape(-1).tolist()
    return found


def _unary(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda node, inputs: function(_tensor(inputs, 0))


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda node, inputs: function(_tensor(inputs, 0), _tensor(inputs, 1))


def _tensor(inputs: Sequence[Value | None], index: int) -> Tensor:
    value = inputs[index]
    assert value is not None
    return plain(value)


def _optional(inputs: Sequence[Value | None], index: int) -> Tensor | None:
    value = inputs[index] if index < len(inputs) else None
    return None if value is None else plain(value)


def _matmul(node: Node, inputs: Sequence[Value | None]) -> Value:
    left, right = inputs
    if isinstance(left, Operand) and isinstance(right, Operand):
        return fp4.multiply(left, right)
    return torch.matmul(_tensor(inputs, 0), _tensor(inputs, 1))


def _cast(node: Node, inputs: Sequence[Value | None]) -> Value:
    value, dtype = inputs[0], DTYPES[node.attributes["to"]]
    if isinstance(value, Operand):
        # The GEMM reads the codes themselves: rounding their values is left to who reads those.
        return value
    return _tensor(inputs, 0).to(dtype)


def _transpose(node: Node, inputs: Sequence[Value | None]) -> Value:
    value = inputs[0]
    x = value.products if isinstance(value, Operand) else _tensor(inputs, 0)
    moved = x.permute(node.attributes.get("perm") or list(range(x.dim()))[::-1])
    return Operand(moved, value.scale) if isinstance(value, Operand) else moved


def _dequantize(node: Node, inputs: Sequence[Value | None]) -> Value:
    value, scale = inputs[0], inputs[1]
    if isinstance(scale, BlockScale):
        if isinstance(value, Codes):
            return Operand(value.products, scale.scale)
        codes = _tensor(inputs, 0)
        return Operand(fp4.products(codes, scale.blocks), scale.scale)
    return BlockScale(_tensor(inputs, 0).float(), float(_tensor(inputs, 1)))


def _quantize(node: Node, inputs: Sequence[Value | None]) -> tuple[Value, ...]:
    return fp4.quantize(_tensor(inputs, 0), float(_tensor(inputs, 1)))


def _reduce_mean(node: Node, inputs: Sequence[Value | None]) -> Value:
    axes = inputs[1]
    assert axes is not None
    return _tensor(inputs, 0).mean(integers(axes), keepdim=bool(node.attributes.get("keepdims", 1)))


def _reshape(node: Node, inputs: Sequence[Value | None]) -> Value:
    x, shape = _tensor(inputs, 0), inputs[1]
    assert shape is not None
    sizes = integers(shape)
    if not node.attributes.get("allowzero", 0):
        sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return x.reshape(sizes)


def _slice(node: Node, inputs: Sequence[Value | None]) -> Value:
    x = _tensor(inputs, 0)
    starts, ends, axes, steps = (
        integers(value) if value is not None else None for value in [*inputs[1:], None, None][:4]
    )
    assert starts is not None
    assert ends is not None
    for index, (begin, end) in enumerate(zip(starts, ends, strict=True)):
        axis = axes[index] if axes else index
        step = steps[index] if steps else 1
        size = x.shape[axis]
        chosen = range(size)[begin:end:step]
        if step == 1:
            x = x.narrow(axis, min(max(chosen.start, 0), size), len(chosen))
        else:
            x = _take(x, axis, list(chosen))
    return x


def _take(x: Tensor, axis: int, indices: Sequence[int]) -> Tensor:
    return torch.stack([x.select(axis, index) for index in indices], axis)


def _gather(node: Node, inputs: Sequence[Value | None]) -> Value:
    x, index, axis = _tensor(inputs, 0), _tensor(inputs, 1), node.attributes.get("axis", 0)
    if index.dim() == 0:
        return x.select(axis, int(index))
    taken = x.index_select(axis, index.reshape(-1))
    return taken.reshape(*x.shape[:axis], *index.shape, *x.shape[axis:][1:])


def _unsqueeze(node: Node, inputs: Sequence[Value | None]) -> Value:
    x, axes = _tensor(inputs, 0), inputs[1]
    assert axes is not None
    rank = x.dim() + len(integers(axes))
    for axis in sorted(index % rank for index in integers(axes)):
        x = x.unsqueeze(axis)
    return x


def _squeeze(node: Node, inputs: Sequence[Value | None]) -> Value:
    axes = inputs[1] if len(inputs) > 1 else None
    x = _tensor(inputs, 0)
    return x.squeeze() if axes is None else x.squeeze(integers(axes))


def _pad(node: Node, inputs: Sequence[Value | None]) -> Value:
    x, pads = _tensor(inputs, 0), inputs[1]
    assert pads is not None
    sizes = integers(pads)
    rank = len(sizes) // 2
    reversed_pairs = [
        size for axis in reversed(range(rank)) for size in (sizes[axis], sizes[axis + rank])
    ]
    fill = _optional(inputs, 2)
    return F.pad(x, reversed_pairs, value=0.0 if fill is None else float(fill))


def _attention(node: Node, inputs: Sequence[Value | None]) -> Value:
    q, k, v = (_tensor(inputs, index) for index in range(3))
    heads, flat = node.attributes.get("q_num_heads", 0), q.dim() == 3
    if flat:
        shared = node.attributes["kv_num_heads"]
        q = q.view(*q.shape[:2], heads, -1).transpose(1, 2)
        k, v = (x.view(*x.shape[:2], shared, -1).transpose(1, 2) for x in (k, v))
    mask = _optional(inputs, 3)
    mask = None if mask is None else mask.to(q.dtype)
    scale = node.attributes.get("scale")
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return out.transpose(1, 2).flatten(-2) if flat else out


def _conv(node: Node, inputs: Sequence[Value | None]) -> Value:
    pads = node.attributes.get("pads") or [0, 0, 0, 0]
    begin, end = pads[: len(pads) // 2], pads[len(pads) // 2 :]
    if begin != end:
        raise BadInput(f"pads {pads} differ at both ends", where=node.name)
    return F.conv2d(
        _tensor(inputs, 0),
        _tensor(inputs, 1),
        _optional(inputs, 2),
        stride=node.attributes.get("strides", 1),
        padding=begin,
        dilation=node.attributes.get("dilations", 1),
        groups=node.attributes.get("group", 1),
    )


def _resize(node: Node, inputs: Sequence[Value | None]) -> Value:
    """Nearest neighbours at whole factors, all that the decoder has."""
    x, scales = _tensor(inputs, 0), _optional(inputs, 2)
    factors = [] if scales is None else [float(each) for each in scales.tolist()]
    if node.attributes.get("mode") != "nearest" or any(each % 1 for each in factors) or not factors:
        raise BadInput("resizes other than to the nearest value by whole factors", where=node.name)
    for axis, factor in enumerate(factors):
        if factor != 1:
            x = x.repeat_interleave(int(factor), axis)
    return x


def _shape(node: Node, inputs: Sequence[Value | None]) -> Value:
    begin, end = node.attributes.get("start", 0), node.attributes.get("end")
    return torch.tensor(list(_tensor(inputs, 0).shape)[begin:end], dtype=torch.int64)


def _concat(node: Node, inputs: Sequence[Value | None]) -> Value:
    return torch.cat(
        [_tensor(inputs, index) for index in range(len(inputs))], node.attributes["axis"]
    )


def _gelu(node: Node, inputs: Sequence[Value | None]) -> Value:
    return F.gelu(_tensor(inputs, 0), approximate=node.attributes.get("approximate", "none"))


def _softmax(node: Node, inputs: Sequence[Value | None]) -> Value:
    return torch.softmax(_tensor(inputs, 0), node.attributes.get("axis", -1))


Operator = Callable[[Node, Sequence[Value | None]], Value | tuple[Value, ...]]

OPERATORS: dict[tuple[str, str], Operator] = {
    ("trt", "TRT_FP4DynamicQuantize"): _quantize,
    **{
        ("", op): function
        for op, function in {
            "Add": _binary(torch.add), "Attention": _attention, "Cast": _cast, "Concat": _concat,
            "Conv": _conv, "Cos": _unary(torch.cos), "DequantizeLinear": _dequantize,
            "Div": _binary(torch.div), "Gather": _gather, "Gelu": _gelu, "MatMul": _matmul,
            "Max": _binary(torch.maximum), "Min": _binary(torch.minimum),
            "Mul": _binary(torch.mul), "Pad": _pad, "Reciprocal": _unary(torch.reciprocal),
            "ReduceMean": _reduce_mean, "Relu": _unary(torch.relu), "Reshape": _reshape,
            "Resize": _resize, "Shape": _shape, "Sigmoid": _unary(torch.sigmoid),
            "Sin": _unary(torch.sin), "Slice": _slice, "Softmax": _softmax,
            "Sqrt": _unary(torch.sqrt), "Squeeze": _squeeze, "Sub": _binary(torch.sub),
            "Tanh": _unary(torch.tanh), "Transpose": _transpose, "Unsqueeze": _unsqueeze,
        }.items()
    },
}  # fmt: skip
"""By domain and name."""

HOST_INPUTS: dict[str, tuple[int, ...]] = {
    "Pad": (1, 2), "ReduceMean": (1,), "Reshape": (1,), "Resize": (2,),
    "Slice": (1, 2, 3, 4), "Squeeze": (1,), "TRT_FP4DynamicQuantize": (1,), "Unsqueeze": (1,),
}  # fmt: skip
"""By operator the inputs that are read on the host when it is enqueued; constants in practice."""
