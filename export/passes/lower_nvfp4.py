"""NVFP4 linears in standard operators that ONNX Runtime has on a CPU."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

from fastwan.errors import BadInput
from fastwan.export.passes.graphs import chain, constant, insert_before, producer
from fastwan.export.recipes.nvfp4 import BLOCK, QUANTISE
from fastwan.plugins.nvfp4 import E2M1_VALUES

_TABLES = {
    "e2m1_pairs": np.array(
        [[E2M1_VALUES[byte & 15], E2M1_VALUES[byte >> 4]] for byte in range(256)], np.float32
    ),
    "e4m3_values": np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32),
}
"""fp32 values of a byte: of its two codes, the low nibble's first, and of a block scale."""


def lower_nvfp4(model: ir.Model, *, quantize_activations: bool = True) -> tuple[ir.Model, bool]:
    """Replace NVFP4 linears by standard operators of the same numerics.

    The weight stays in its data file as it is: the lowered graph reads the same bytes as uint8 and
    looks pairs of codes up in a table. The GEMM runs in fp32 over exactly representable operands
    and rounds once, as the FP4 GEMM does.

    Requires: linears as `expand_nvfp4` leaves them; a quantised activation that is given to the
        graph has global scale 1.
    Ensures: no quantise or dequantise node of theirs is read any more; FP4 codes that were inputs
        of the graph and their e4m3 scales are inputs as bytes, uint8 [.., K/2] and [.., K/16].

    Args:
        model: changed in place.
        quantize_activations: false leaves the activations unquantised.

    Raises:
        BadInput: FP4 nodes that are not of the form `expand_nvfp4` makes.
    """
    changed = _lower_given(model.graph)
    for node in list(model.graph):
        if node.op_type == "MatMul" and _weight_chain(node) is not None:
            _lower_linear(model.graph, node, quantize_activations)
            changed = True
    return model, changed


def _weight_chain(matmul: ir.Node) -> list[ir.Node] | None:
    """Transpose, Cast, DequantizeLinear of an FP4 weight, seen from its MatMul."""
    nodes = chain(matmul.inputs[1], "Transpose", "Cast", "DequantizeLinear")
    if nodes is None or list(nodes[0].attributes["perm"].as_ints()) != [1, 0]:
        return None
    weight = nodes[-1].inputs[0]
    return nodes if weight is not None and weight.dtype == ir.DataType.FLOAT4E2M1 else None


def _blockwise_scale(dequantize: ir.Node) -> tuple[ir.Value, ir.Value]:
    """(block scale, global scale) of a DequantizeLinear by blocks of 16 along the last axis."""
    settings = [dequantize.attributes.get_int(name, 0) for name in ("axis", "block_size")]
    scale = chain(dequantize.inputs[1], "DequantizeLinear")
    if settings != [-1, BLOCK] or scale is None:
        raise BadInput(
            f"FP4 values are not scaled in blocks of {BLOCK} along the last axis",
            where=str(dequantize.name),
            fix="FP4 nodes must be those of an exported linear",
        )
    block_scale, global_scale = scale[0].inputs[:2]
    assert block_scale is not None
    assert global_scale is not None
    return block_scale, global_scale


class _Builder:
    """Makes nodes before an anchor, each with one named output."""

    def __init__(self, graph: ir.Graph, anchor: ir.Node, prefix: str) -> None:
        self.graph, self.anchor, self.prefix = graph, anchor, prefix
        self.count = 0

    def __call__(self, op_type: str, *inputs: ir.Value, **attributes: object) -> ir.Value:
        self.count += 1
        name = f"{self.prefix}/{self.count:02d}_{op_type}"
        node = ir.node(op_type, list(inputs), attributes or None, name=name)  # type: ignore[arg-type]
        node.outputs[0].name = f"{name}/out"
        boolean = op_type in ("Greater", "Less")
        node.outputs[0].type = ir.TensorType(ir.DataType.BOOL if boolean else ir.DataType.FLOAT)
        insert_before(self.anchor, [node])
        return node.outputs[0]

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        return constant(self.graph, f"lowered/{name}", ir.tensor(array))

    def scalar(self, name: str, value: float) -> ir.Value:
        return self.constant(name, np.array(value, np.float32))


def _lower_linear(graph: ir.Graph, matmul: ir.Node, quantize: bool) -> None:
    nodes = _weight_chain(matmul)
    assert nodes is not None
    build = _Builder(graph, matmul, f"{str(matmul.name).removesuffix('/MatMul')}/lowered")
    codes = nodes[-1].inputs[0]
    if codes is None or not codes.is_initializer():
        raise BadInput(
            "FP4 weight is no initializer",
            where=str(matmul.name),
            fix="FP4 nodes must be those of an exported linear",
        )
    block_scale, global_scale = _blockwise_scale(nodes[-1])
    weight = _unpacked_weight(build, codes, block_scale)
    x = _activation(build, matmul.inputs[0], quantize)
    product = build("Mul", build("MatMul", x, weight), global_scale)
    old = matmul.outputs[0]
    result = build("Cast", product, to=int(old.dtype or 1))
    result.type, result.shape = old.type, old.shape
    ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
    result.name, old.name = old.name, f"{old.name}/unused"
    graph.remove(matmul, safe=True)


def _unpacked_weight(build: _Builder, codes: ir.Value, block_scale: ir.Value) -> ir.Value:
    """fp32 [K, N] = e2m1 * block scale, exact; the global scale is left to the accumulator."""
    rows, columns = codes.shape.numpy()  # type: ignore[union-attr]
    stored = codes.const_value
    name = f"{codes.name}/bytes"
    packed = ir.Value(
        name=name, type=ir.TensorType(ir.DataType.UINT8), shape=ir.Shape([rows, columns // 2])
    )
    if isinstance(stored, ir.ExternalTensor):
        packed.const_value = ir.ExternalTensor(
            stored.location,
            stored.offset,
            stored.length,
            ir.DataType.UINT8,
            shape=ir.Shape([rows, columns // 2]),
            name=name,
            base_dir=stored.base_dir,
        )
    elif stored is not None:
        raw = np.frombuffer(stored.tobytes(), np.uint8).reshape(rows, columns // 2)
        packed.const_value = ir.tensor(raw, name=name)
    build.graph.initializers.add(packed)
    values = _looked_up(build, "e2m1_pairs", packed)
    shape = np.array([rows, columns // BLOCK, BLOCK])
    blocks = build.constant(f"blocks_{rows}x{columns}", shape)
    scale = build("Cast", block_scale, to=1)
    scale = build("Unsqueeze", scale, build.constant("last_axis", np.array([-1])))
    scaled = build("Mul", build("Reshape", values, blocks), scale)
    flat = build("Reshape", scaled, build.constant(f"rows_{rows}", np.array([rows, -1])))
    return build("Transpose", flat, perm=[1, 0])


def _looked_up(build: _Builder, table: str, values: ir.Value) -> ir.Value:
    """What the bytes of `values` stand for, by a table of `_TABLES`."""
    indices = build("Cast", values, to=int(ir.DataType.INT32))
    indices.type = ir.TensorType(ir.DataType.INT32)
    return build("Gather", build.constant(table, _TABLES[table]), indices, axis=0)


def _lower_given(graph: ir.Graph) -> bool:
    """Make quantised activations that the graph is given inputs of bytes, and dequantise those."""
    changed = False
    for codes in [value for value in graph.inputs if value.dtype == ir.DataType.FLOAT4E2M1]:
        for dequantize in codes.consumers():
            _lower_codes(graph, dequantize)
        changed = True
    return changed


def _lower_codes(graph: ir.Graph, dequantize: ir.Node) -> None:
    block_scale, _ = _blockwise_scale(dequantize)
    codes, old = dequantize.inputs[0], dequantize.outputs[0]
    assert codes is not None
    assert codes.shape is not None
    build = _Builder(graph, dequantize, f"{dequantize.name}/lowered")
    *lead, columns = codes.shape.numpy()
    packed = _given_bytes(graph, codes, [*lead, columns // 2])
    scales = _given_bytes(graph, block_scale, [*lead, columns // BLOCK])
    grouped = np.array([*lead, columns // BLOCK, BLOCK])
    values = build(
        "Reshape",
        _looked_up(build, "e2m1_pairs", packed),
        build.constant(f"groups_{'x'.join(map(str, grouped))}", grouped),
    )
    scale = build(
        "Unsqueeze",
        _looked_up(build, "e4m3_values", scales),
        build.constant("last_axis", np.array([-1])),
    )
    flat = build(
        "Reshape",
        build("Mul", values, scale),
        build.constant(f"flat_{'x'.join(map(str, (*lead, columns)))}", np.array([*lead, columns])),
    )
    made = build("Cast", flat, to=int(old.dtype or 1))
    made.type, made.shape = old.type, old.shape
    ir.convenience.replace_all_uses_with(old, made)


def _given_bytes(graph: ir.Graph, value: ir.Value, shape: list[int]) -> ir.Value:
    """The input of that name as uint8, put in its place once."""
    found = next((each for each in graph.inputs if each.name == value.name), None)
    if found is None:
        raise BadInput(
            "block scales are no input of the graph as their codes are",
            where=str(value.name),
            fix="divide the graph in front of both",
        )
    if found.dtype == ir.DataType.UINT8:
        return found
    made = ir.Value(name=value.name, type=ir.TensorType(ir.DataType.UINT8), shape=ir.Shape(shape))
    graph.inputs[list(graph.inputs).index(found)] = made
    return made


def _activation(build: _Builder, x: ir.Value | None, quantize: bool) -> ir.Value:
    """The GEMM's left operand in fp32: fake-quantised with global scale as the graph has it."""
    assert x is not None
    nodes = chain(x, "Cast", "DequantizeLinear")
    quantizer = None if nodes is None else producer(nodes[1].inputs[0], QUANTISE[1], QUANTISE[0])
    if nodes is None or quantizer is None:
        return build("Cast", x, to=1)
    dequantize = nodes[1]
    source, global_scale = quantizer.inputs
    assert source is not None
    assert global_scale is not None
    if _blockwise_scale(dequantize) != (quantizer.outputs[1], global_scale):
        raise BadInput(
            "activation is dequantised with scales that are not its own",
            where=str(dequantize.name),
            fix="FP4 nodes must be those of an exported linear",
        )
    wide = build("Cast", source, to=1)
    return fake_quantize(build, wide, source, global_scale) if quantize else wide


def fake_quantize(
    build: _Builder, wide: ir.Value, source: ir.Value, global_scale: ir.Value
) -> ir.Value:
    """`nvfp4.fake_quantize_activation` in standard operators, bit for bit.

    Args:
        wide: the activation in fp32; `source` is the same value as the graph has it.
        global_scale: [] fp32, of the graph's own quantise node.
    """
    assert source.shape is not None
    # Reshape takes 0 for "as it is", which a dynamic length needs.
    *lead, last = (d if isinstance(d, int) else 0 for d in source.shape)
    shape = "x".join(str(dimension) for dimension in (*lead, last))
    grouped = build.constant(f"groups_{shape}", np.array([*lead, last // BLOCK, BLOCK]))
    flat = build.constant(f"flat_{shape}", np.array([*lead, last]))
    blocks = build("Reshape", wide, grouped)
    axis = build.constant("last_axis", np.array([-1]))
    amax = build("ReduceMax", build("Abs", blocks), axis)
    scale = build("Div", amax, build.scalar("six", 6))
    scale = build("Min", build("Div", scale, global_scale), build.scalar("e4m3_max", 448))
    rounded = build("Cast", scale, to=int(ir.DataType.FLOAT8E4M3FN))
    rounded.type = ir.TensorType(ir.DataType.FLOAT8E4M3FN)
    divisor = build("Mul", build("Cast", rounded, to=1), global_scale)
    positive = build("Greater", divisor, build.scalar("zero", 0))
    scaled = build("Div", blocks, build("Where", positive, divisor, build.scalar("inf", np.inf)))
    magnitude = build("Min", build("Abs", scaled), build.scalar("six", 6))
    one, two, four = build.scalar("one", 1), build.scalar("two", 2), build.scalar("four", 4)
    coarse = build("Where", build("Less", magnitude, four), one, two)
    step = build("Where", build("Less", magnitude, two), build.scalar("half", 0.5), coarse)
    value = build("Mul", build("Round", build("Div", magnitude, step)), step)
    value = build("Mul", value, build("Sign", scaled))
    return build("Reshape", build("Mul", value, divisor), flat)
