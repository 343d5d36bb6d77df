"""Building a large graph from stages that were traced once each."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from fastwan.export.onnx_io import IR_VERSION, OPSET
from fastwan.export.passes.graphs import copy_node


class Composer:
    """Copies traced stages into one graph, with a prefix before every name they define.

    Args:
        name: name of the graph.
        domains: opset versions of further operator domains.
    """

    def __init__(self, name: str, domains: Mapping[str, int] | None = None) -> None:
        imports = {"": OPSET, **(domains or {})}
        self.graph = ir.Graph([], [], nodes=[], name=name, opset_imports=imports)

    def input(self, stage: ir.Model, name: str) -> ir.Value:
        """Declare a graph input with the type and shape that it has in `stage`."""
        source = next(value for value in stage.graph.inputs if value.name == name)
        value = ir.Value(name=name, type=source.type, shape=source.shape)
        self.graph.inputs.append(value)
        return value

    def initializer(self, name: str, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.Value:
        """Declare an initializer whose value is attached later."""
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self.graph.initializers.add(value)
        return value

    def add(
        self,
        stage: ir.Model,
        prefix: str,
        bindings: Mapping[str, ir.Value],
        constants: str,
    ) -> list[ir.Value]:
        """Append a copy of `stage`.

        Args:
            stage: a traced graph; initializers without a value are parameters.
            prefix: before the names of parameters, nodes and values, e.g. ``blocks.3.``.
            bindings: value for each input of the stage.
            constants: prefix of the stage's own constants, which all its copies share.

        Returns:
            The values of the stage's outputs.
        """
        values: dict[ir.Value, ir.Value] = {v: bindings[str(v.name)] for v in stage.graph.inputs}
        for name, source in stage.graph.initializers.items():
            full = (prefix if source.const_value is None else constants) + name
            existing = self.graph.initializers.get(full)
            if existing is None:
                existing = ir.Value(
                    name=full, type=source.type, shape=source.shape, const_value=source.const_value
                )
                self.graph.initializers.add(existing)
            values[source] = existing
        for node in stage.graph:
            name = f"{prefix}{node.outputs[0].name}"
            self.graph.append(copy_node(node, values, name, prefix))
        return [values[value] for value in stage.graph.outputs]

    def model(self, outputs: Mapping[str, ir.Value]) -> ir.Model:
        """The finished model with these graph outputs, which get these names."""
        for name, value in outputs.items():
            value.name = name
            self.graph.outputs.append(value)
        return ir.Model(self.graph, ir_version=IR_VERSION)
