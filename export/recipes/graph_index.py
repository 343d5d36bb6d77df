"""A graph's nodes and initializers by name, for the gates."""

from __future__ import annotations

import math

import onnx
import onnx.numpy_helper
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
        self._inputs = {value.name: value.type.tensor_type for value in model.graph.input}
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

    def is_input(self, name: str) -> bool:
        """Whether a value is an input of the graph."""
        return name in self._inputs

    def quantised_inputs(self, codes: str, block_scale: str, block: int) -> bool:
        """Whether two values are inputs of the graph: FP4 codes and an e4m3 scale for each block.

        Args:
            block: codes along the last axis that share a scale.
        """
        found = [self._inputs.get(name) for name in (codes, block_scale)]
        types = [TensorProto.FLOAT4E2M1, TensorProto.FLOAT8E4M3FN]
        if [tensor and tensor.elem_type for tensor in found] != types:
            return False
        values, scales = ([axis.dim_value for axis in t.shape.dim] for t in found if t)
        return values == [*scales[:-1], scales[-1] * block]

    def scalar(self, name: str) -> float | None:
        """The number that an initializer of one element inside the file holds; None for others."""
        tensor = self.initializers.get(name)
        if tensor is None or math.prod(tensor.dims) != 1 or tensor.external_data:
            return None
        return float(onnx.numpy_helper.to_array(tensor).item())

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
