"""One FP4 linear whose result says what the GPU took its operands for.

Half of the weight's rows are a unit matrix, so that the product repeats the activation as the GPU
quantised it; the other half are all codes and scales, which a unit matrix for an activation reads
out. Every such element is one product that bf16 holds exactly: a fault of the layout shows as
itself, and is found by trying each on the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from fastwan.export.onnx_io import IR_VERSION, OPSET
from fastwan.export.passes.graphs import FASTWAN
from fastwan.export.recipes.nvfp4 import NVFP4
from fastwan.manifest import Linear
from fastwan.plugins import nvfp4

K = 512
"""Inputs of the linear, and rows of its activation: eight tiles of 4 scales, four of 128 rows."""
N = 2 * K
NAME = "probe"
LINEAR = Linear(name=NAME, node=f"{NAME}/MatMul", sources=(NAME,), format="nvfp4")

GLOBAL_SCALE = 0.5
"""Of the weight: not 1, so that leaving it out shows."""
_TWO, _ONE_E4M3 = 4, 0x38
"""Code of 2.0 and byte of the scale 1.0: with the global scale they make 1."""


class Packed(NamedTuple):
    """An operand as bytes.

    Attributes:
        codes: [R, K/2] uint8, low nibble = even column.
        scales: [R, K/16] float8_e4m3fn.
    """

    codes: Tensor
    scales: Tensor

    def values(self) -> Tensor:
        """fp32 [R, K], without a global scale."""
        return nvfp4.dequantize_weight(nvfp4.PackedWeight(*self, torch.ones(())))


def weight() -> Packed:
    """[N, K]: a unit matrix over rows of all codes under scales 2**-2 .. 3.75."""
    generator = torch.Generator().manual_seed(5090)
    codes = torch.zeros(N, K, dtype=torch.uint8)
    codes[:K] = torch.eye(K, dtype=torch.uint8) * _TWO
    codes[K:] = torch.randint(0, 16, (K, K), generator=generator, dtype=torch.uint8)
    scales = torch.full((N, K // nvfp4.BLOCK), _ONE_E4M3, dtype=torch.uint8)
    shape = (K, K // nvfp4.BLOCK)
    scales[K:] = torch.randint(0x28, 0x48, shape, generator=generator, dtype=torch.uint8)
    return Packed(nvfp4.pack_nibbles(codes), scales.view(torch.float8_e4m3fn))


def unit() -> Tensor:
    """[K, K] bf16: a value in one column of each row, which quantises to itself."""
    return torch.eye(K, dtype=torch.bfloat16) * nvfp4.E2M1_MAX


def ramp() -> Tensor:
    """[K, K] bf16 that quantises to itself under any rounding; each block has a scale of its own.

    The largest value of a block is 6 times its scale, a power of two.
    """
    generator = torch.Generator().manual_seed(9050)
    codes = torch.randint(0, 16, (K, K), generator=generator, dtype=torch.uint8)
    blocks = nvfp4.decode_e2m1(codes).view(K, -1, nvfp4.BLOCK)
    place = torch.randint(0, nvfp4.BLOCK, blocks.shape[:2], generator=generator)
    blocks.scatter_(2, place.unsqueeze(-1), nvfp4.E2M1_MAX)
    exponents = torch.randint(-4, 5, blocks.shape[:2], generator=generator)
    return (blocks * torch.exp2(exponents.float()).unsqueeze(-1)).view(K, K).bfloat16()


def model() -> ir.Model:
    """The linear as the exporter writes it for the recipe ``nvfp4``; x [K, K] bf16 -> y [K, N]."""
    packed = weight()

    def constant(name: str, tensor: ir.TensorProtocol) -> ir.Value:
        value = ir.Value(
            name=name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(tensor.shape.numpy()),
            const_value=tensor,
        )
        graph.initializers.add(value)
        return value

    def variable(name: str, columns: int) -> ir.Value:
        kind = ir.TensorType(ir.DataType.BFLOAT16)
        return ir.Value(name=name, type=kind, shape=ir.Shape([K, columns]))

    x = variable("x", K)
    opsets = {"": OPSET, FASTWAN: 1}
    graph = ir.Graph([x], [], nodes=[], name=NAME, opset_imports=opsets)
    scales = packed.scales.view(torch.uint8).numpy()
    operands = [
        x,
        constant(f"{NAME}.weight", _bytes(packed.codes.numpy(), ir.DataType.FLOAT4E2M1, (N, K))),
        constant(f"{NAME}.scale", _bytes(scales, ir.DataType.FLOAT8E4M3FN, scales.shape)),
        constant(f"{NAME}.global_scale", ir.tensor(np.float32(GLOBAL_SCALE))),
    ]
    node = ir.Node(
        FASTWAN,
        NVFP4.operator,
        operands,
        [ir.AttrInt64("quantize_activation", 1)],
        name=LINEAR.node,
        outputs=[variable("y", N)],
    )
    graph.append(node)
    graph.outputs.append(node.outputs[0])
    made, _ = NVFP4().expand(ir.Model(graph, ir_version=IR_VERSION))
    made.graph.opset_imports.pop(FASTWAN, None)
    return made


def _bytes(array: np.ndarray, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.TensorProtocol:
    import onnx

    raw = onnx.TensorProto(data_type=int(dtype), raw_data=array.tobytes())
    raw.dims.extend(shape)
    return ir.serde.TensorProtoTensor(raw)


def product(activation: Packed, packed_weight: Packed) -> Tensor:
    """y [K, N] fp32 of bf16 values: fp32 sums, the global scale, rounded once."""
    sums = activation.values() @ packed_weight.values().t()
    return (sums * GLOBAL_SCALE).bfloat16().float()


def _nibbles(operand: Packed) -> Packed:
    return operand._replace(codes=(operand.codes >> 4) | (operand.codes << 4))


def _tiles(scales: Tensor) -> Tensor:
    """Scales in tiles of 128 rows and 4 columns, as block-scaled MMAs read them, in a row."""
    rows, groups = scales.shape
    tiles = scales.view(rows // 128, 4, 32, groups // 4, 4)
    return tiles.permute(0, 3, 2, 1, 4).reshape(rows, groups)


def _rows(scales: Tensor) -> Tensor:
    """The inverse of `_tiles`."""
    rows, groups = scales.shape
    tiles = scales.view(rows // 128, groups // 4, 32, 4, 4)
    return tiles.permute(0, 3, 2, 1, 4).reshape(rows, groups)


def _scales(change: Callable[[Tensor], Tensor]) -> Callable[[Packed], Packed]:
    def changed(operand: Packed) -> Packed:
        moved = change(operand.scales.view(torch.uint8)).contiguous()
        return operand._replace(scales=moved.view(torch.float8_e4m3fn))

    return changed


@dataclass(frozen=True)
class Fault:
    """A way to misread an operand.

    Attributes:
        cause: in words, after "of the activation" or "of the weight".
        misread: what the operand then is.
    """

    name: str
    cause: str
    misread: Callable[[Packed], Packed]


FAULTS = (
    Fault("nibbles", "nibble order: the low nibble is taken for the odd element", _nibbles),
    Fault("tiles", "scale layout: scales in 128x4 tiles are read row by row", _scales(_tiles)),
    Fault("rows", "scale layout: scales in rows are read as 128x4 tiles", _scales(_rows)),
    Fault(
        "transposed",
        "scale layout: rows and columns of the scales are swapped",
        _scales(lambda scales: scales.t().reshape(scales.shape)),
    ),
    Fault("unscaled", "block scales are not applied", _scales(lambda s: s.fill_(_ONE_E4M3))),
)


def diagnose(of_unit: Tensor, of_ramp: Tensor) -> str | None:
    """Name the fault that explains the products of `unit` and `ramp`; None where none does.

    Args:
        of_unit: y [K, N] of the GPU, fp32.
        of_ramp: likewise.

    Returns:
        an empty text where both are right.
    """
    packed = weight()
    inputs = [(unit(), of_unit, N), (ramp(), of_ramp, K)]
    activations = [Packed(*nvfp4.quantize_activation(x)) for x, _, _ in inputs]

    def explains(of_weight: Fault | None, of_activation: Fault | None) -> bool:
        used = packed if of_weight is None else of_weight.misread(_copy(packed))
        return all(
            torch.equal(
                product(
                    each if of_activation is None else of_activation.misread(_copy(each)), used
                )[:, :columns],
                seen[:, :columns],
            )
            for each, (_, seen, columns) in zip(activations, inputs, strict=True)
        )

    if explains(None, None):
        return ""
    for fault in FAULTS:
        operands = [
            name
            for name, found in (
                ("weight", explains(fault, None)),
                ("activation", explains(None, fault)),
            )
            if found
        ]
        if operands:
            return f"of the {' or of the '.join(operands)}, {fault.cause}"
    return None


def _copy(operand: Packed) -> Packed:
    return Packed(operand.codes.clone(), operand.scales.clone())
