"""Let attention to the prompt read and write rows, so that no kernel divides or joins heads."""

from __future__ import annotations

from collections.abc import Sequence

import ml_dtypes
import numpy as np
import onnx_ir as ir

from fastwan.export.passes.graphs import chain, constant, insert_before, remove_unread

_SWAPPED = [0, 2, 1, 3]
SUFFIX = "/rows"


def attend_rows(model: ir.Model) -> tuple[ir.Model, bool]:
    """Write each ``Attention`` over heads of rows as MatMul, Mul, Softmax and MatMul of rank 3.

    TensorRT makes one fused attention of either form. Of rank 3, without the batch axis, it reads
    queries and keys where the norms wrote them, row by row; of rank 4 the heads are kernels of
    their own, and the norm of the queries is two: 109 MB more for 32,768 x 1536.

    Requires: batch 1; q [1, H, L, D] and k [1, H, T, D] are heads of rows, v is [1, H, T, D]; the
        output is joined to rows again; no mask.
    Ensures: the same products; the scale is rounded to the dtype of the values. Names of values
        that other nodes read stay.

    Args:
        model: changed in place.
    """
    changed = False
    for node in list(model.graph):
        if node.domain or node.op_type != "Attention" or len(node.inputs) != 3:
            continue
        joined, scale = _joined(node), node.attributes.get("scale")
        q, k = (_rows(value) for value in node.inputs[:2])
        v = node.inputs[2]
        if joined is None or scale is None or q is None or k is None or v is None:
            continue
        assert v.shape is not None
        if v.shape[0] != 1:
            continue
        _replace(model.graph, node, (q, k, v), joined, scale.as_float())
        changed = True
    return model, changed


def _rows(value: ir.Value | None) -> ir.Value | None:
    """[1, L, C] whose heads [1, H, L, D] `value` is."""
    found = chain(value, "Transpose", "Reshape")
    return found[1].inputs[0] if found is not None and _swaps(found[0]) else None


def _joined(attention: ir.Node) -> ir.Value | None:
    """[1, L, C] that the attention's heads are joined to, if nothing else reads them."""
    value = attention.outputs[0]
    for op_type in ("Transpose", "Reshape"):
        uses = list(value.uses())
        if len(uses) != 1 or uses[0].node.op_type != op_type or value.is_graph_output():
            return None
        if op_type == "Transpose" and not _swaps(uses[0].node):
            return None
        value = uses[0].node.outputs[0]
    return value


def _swaps(transpose: ir.Node) -> bool:
    return list(transpose.attributes["perm"].as_ints()) == _SWAPPED


def _replace(
    graph: ir.Graph,
    attention: ir.Node,
    operands: tuple[ir.Value, ir.Value, ir.Value],
    joined: ir.Value,
    scale: float,
) -> None:
    q, k, v = operands
    dtype = v.dtype
    assert v.shape is not None
    assert joined.shape is not None
    _, heads, keys, width = (int(size) for size in v.shape.numpy())
    length = int(joined.shape.numpy()[1])
    nodes: list[ir.Node] = []

    def add(
        op_type: str, inputs: Sequence[ir.Value], shape: Sequence[int], **attributes: object
    ) -> ir.Value:
        name = f"{attention.name}{SUFFIX}/{len(nodes):02d}_{op_type}"
        node = ir.node(op_type, list(inputs), attributes or None, name=name)  # type: ignore[arg-type]
        nodes.append(node)
        value = node.outputs[0]
        value.name = f"{name}/out"
        value.type = None if dtype is None else ir.TensorType(dtype)
        value.shape = ir.Shape(shape)
        return value

    def reshaped(value: ir.Value, *shape: int) -> ir.Value:
        sizes = constant(graph, f"rows/{'x'.join(map(str, shape))}", ir.tensor(np.array(shape)))
        return add("Reshape", [value, sizes], shape)

    kind = ml_dtypes.bfloat16 if dtype == ir.DataType.BFLOAT16 else np.float32
    factor = constant(graph, f"rows/scale_{scale:.6g}", ir.tensor(np.array(scale, kind)))
    turned = [heads, length, width]
    queries = add("Transpose", [reshaped(q, length, heads, width)], turned, perm=[1, 0, 2])
    turned = [heads, width, keys]
    columns = add("Transpose", [reshaped(k, keys, heads, width)], turned, perm=[1, 2, 0])
    scores = add("MatMul", [queries, columns], [heads, length, keys])
    scores = add("Mul", [scores, factor], [heads, length, keys])
    weights = add("Softmax", [scores], [heads, length, keys], axis=-1)
    out = add("MatMul", [weights, reshaped(v, heads, keys, width)], [heads, length, width])
    out = add("Transpose", [out], [length, heads, width], perm=[1, 0, 2])
    out = reshaped(out, *(int(size) for size in joined.shape.numpy()))
    insert_before(attention, nodes)
    ir.convenience.replace_all_uses_with(joined, out, replace_graph_outputs=True)
    out.name, joined.name = joined.name, f"{joined.name}/unread"
    unread = joined.producer()
    assert unread is not None
    remove_unread(graph, unread)
