"""A graph's nodes and initializers by name, for the gates."""

from __future__ import annotations

import math

import onnx
from onnx import TensorProto

from fastwan.export.recipes.base import Fault


class GraphIndex:
    """Producers and initializers of a graph by the name of their value.

    Attributes:
        producers: node that makes a value.
        initializers: tensors.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.producers = {out: node for node in model.graph.node for out in node.output if out}
        self.initializers: dict[str, TensorProto] = {
            tensor.name: tensor for tensor in model.graph.initializer
        }
        self._nodes: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            self._nodes.setdefault(node.name, []).append(node)

    def matmul(self, name: str) -> tuple[str, str]:
        """(activation, weight) of the MatMul node of that name.

        Raises:
            Fault: there is none, or more than one.
        """
        nodes = self._nodes.get(name, [])
        if len(nodes) != 1 or nodes[0].op_type != "MatMul" or len(nodes[0].input) != 2:
            raise Fault(f"there is no single MatMul node {name}")
        activation, weight = nodes[0].input
        return activation, weight

    def initializer(self, name: str, dtype: int, role: str) -> int:
        """Number of elements of an initializer.

        Args:
            dtype: what it has to be, of ``TensorProto.DataType``.
            role: what it is of the linear, for the message.

        Raises:
            Fault: there is none of that name, or of another dtype.
        """
        tensor = self.initializers.get(name)
        if tensor is None:
            raise Fault(f"its {role} is no initializer")
        if tensor.data_type != dtype:
            found, wanted = (TensorProto.DataType.Name(t) for t in (tensor.data_type, dtype))
            raise Fault(f"its {role} is {found}, not {wanted}")
        return math.prod(tensor.dims)
