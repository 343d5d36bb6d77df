"""Leave the scales of a product's rows to the attention that reads the product."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from fastwan.export.passes.graphs import FASTWAN, chain, constant, insert_before, remove_unread

ROW_SCALED = "row_scaled"
"""Attribute of an attention node whose last input is a factor of each row of its first one."""
_NODE = "SageAttention3"  # of every attention, as it is exported
_SCALED = ("Cast", "Mul", "Cast", "MatMul")


def scale_rows(model: ir.Model) -> bool:
    """Give each attention the product of its qkv GEMM as it is, and the factors of its rows.

    A pass over the product of its own would read and write 604 MB for 32,768 x 4608.

    Requires: linears as `expand_fp8` leaves them.
    Ensures: where an attention alone reads a product of rows with computed factors, it has these,
        [B, L, 1] fp32, as its last input; ``bf16(product * factor)`` is left to it.

    Args:
        model: changed in place.

    Returns:
        Whether there was any.
    """
    changed = False
    for node in list(model.graph):
        if node.domain != FASTWAN or node.op_type != _NODE or ROW_SCALED in node.attributes:
            continue
        scaled = node.inputs[0]
        found = chain(scaled, *_SCALED)
        factor = None if found is None else found[1].inputs[1]
        if scaled is None or found is None or factor is None or len(list(scaled.uses())) != 1:
            continue
        product = found[2].inputs[0]
        assert product is not None
        assert product.shape is not None
        rows = _of_rows(model.graph, node, factor, product.shape.numpy())
        if product.dtype != scaled.dtype or scaled.is_graph_output() or rows is None:
            continue
        node.replace_input_with(0, product)
        node.resize_inputs(len(node.inputs) + 1)
        node.replace_input_with(len(node.inputs) - 1, rows)
        node.attributes.add(ir.AttrInt64(ROW_SCALED, 1))
        remove_unread(model.graph, found[0])
        changed = True
    return changed


def _of_rows(
    graph: ir.Graph, anchor: ir.Node, factor: ir.Value, product: tuple[int, ...]
) -> ir.Value | None:
    """A computed factor as one of each row, [B, L, 1]; None for one of another kind."""
    shape = None if factor.shape is None else tuple(factor.shape.numpy())
    rows = (*product[:-1], 1)
    if factor.dtype != ir.DataType.FLOAT or shape not in (rows, (1,) * len(rows)):
        return None
    if shape == rows:
        return factor
    sizes = constant(graph, f"rows_of/{'x'.join(map(str, rows))}", ir.tensor(np.array(rows)))
    node = ir.node("Expand", [factor, sizes], name=f"{factor.name}/rows")
    made = node.outputs[0]
    made.name, made.type, made.shape = f"{node.name}/out", factor.type, ir.Shape(rows)
    insert_before(anchor, [node])
    return made
