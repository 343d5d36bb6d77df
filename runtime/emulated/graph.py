"""The part of an exported graph that one engine computes, run node by node in torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastwan.errors import BadInput
from fastwan.plugins.lifted import Derived, derived
from fastwan.runtime.emulated.fp4 import Codes, Operand
from fastwan.runtime.emulated.operators import DTYPES, HOST_INPUTS, OPERATORS, Node, Value, plain

if TYPE_CHECKING:
    import onnx

    from fastwan.onnx_guard import BundleGraph

SHARED = ".shared"
"""Ends the name of a constant that one engine hands to others; here each reads its own."""

ONE = "fastwan.one"
"""Name of the constant 1."""

_BYTES = {17: torch.float8_e4m3fn, 23: torch.uint8}
"""Constants that torch has no arithmetic for: FLOAT8E4M3FN, and FLOAT4E2M1 with two a byte."""


class TorchGraph:
    """An engine's graph on a device of torch.

    What depends on constants alone is computed once, weights of quantised GEMMs among it.

    Args:
        source: the checked graph; nodes that do not lead to `outputs` are left out.
        inputs: names of what the engine is given; a quantised activation among them is its codes,
            two a byte, and its block scales.
        outputs: names of what it computes, a quantised activation likewise; see
            `fastwan.plugins.lifted` for those that the graph does not hold.
        weights: initializers that the engine is given as well. A block scale among them has the
            global scale 1, whatever the graph holds: who is given weights leaves that to a node
            behind it.

    Raises:
        BadInput: an operator that is not known here, or a value that nothing computes.
    """

    def __init__(
        self,
        source: BundleGraph,
        inputs: Sequence[str],
        outputs: Sequence[str],
        device: torch.device,
        weights: Collection[str] = (),
    ) -> None:
        self._device = device
        self._where = source.file
        nodes = _between(source.model, inputs, outputs, source.file)
        nodes = [_without_factor(node, weights) for node in nodes]
        self.outputs = tuple(outputs)
        self._made = {name: _of_graph(name) for name in outputs}
        made = {each.source for each in self._made.values()}
        given = {name for name in inputs if not name.endswith(SHARED)}
        self._given = set(weights)
        self._of_given: dict[str, Operand] = {}
        self._constants, self._nodes = self._fold(source, nodes)
        used = {name for node in self._nodes for name in node.inputs} | made
        self._constants = {n: value for n, value in self._constants.items() if n in used}
        self._released = _last_uses(self._nodes, made | given)

    def _fold(
        self, source: BundleGraph, nodes: Sequence[Node]
    ) -> tuple[dict[str, Value], list[Node]]:
        """Constants and what follows from them, and the nodes that are left."""
        wanted = {name for node in nodes for name in node.inputs}
        initializers = {
            tensor.name: tensor
            for tensor in source.model.graph.initializer
            if tensor.name not in self._given
        }
        constants: dict[str, Value] = {ONE: torch.ones(())}
        on_host = {
            node.inputs[index]
            for node in nodes
            for index in HOST_INPUTS.get(node.op, ())
            if index < len(node.inputs)
        }
        uses = {name: sum(name in node.inputs for node in nodes) for name in wanted}
        left: list[Node] = []
        for node in nodes:
            names = [name for name in node.inputs if name]
            for name in names:
                if name in initializers and name not in constants:
                    constants[name] = self._constant(source, initializers[name], on_host)
            if not all(name in constants for name in names):
                left.append(node)
            else:
                results = self._apply(node, constants)
                constants.update(zip(node.outputs, results, strict=False))
                for name in names:  # weights in two forms at once would take twice the memory
                    uses[name] -= 1
                    if not uses[name]:
                        del constants[name]
        return constants, left

    def _constant(
        self, source: BundleGraph, tensor: onnx.TensorProto, on_host: Collection[str]
    ) -> Tensor:
        content, kind = bytearray(source.content(tensor)), tensor.data_type
        dtype = DTYPES.get(kind) or _BYTES.get(kind)
        if dtype is None:
            raise BadInput(f"constant {tensor.name!r} has a dtype that is not known here")
        if not content:
            return torch.empty(list(tensor.dims), dtype=dtype)
        shape = list(tensor.dims)
        if kind not in DTYPES and dtype is torch.uint8:
            shape[-1] //= 2
        value = torch.frombuffer(content, dtype=dtype).reshape(shape)
        # A scalar in host memory is an argument of the kernels that it takes part in.
        return value if tensor.name in on_host or not shape else value.to(self._device)

    def _apply(self, node: Node, values: Mapping[str, Value]) -> tuple[Value, ...]:
        operator = OPERATORS[node.domain, node.op]
        result = operator(node, [values[name] if name else None for name in node.inputs])
        return result if isinstance(result, tuple) else (result,)

    @property
    def operands(self) -> dict[str, Operand]:
        """Weights of the quantised GEMMs, [K, N], by the name of the value in the graph.

        Those that the engine is given are known once it has run.
        """
        fixed = {n: value for n, value in self._constants.items() if isinstance(value, Operand)}
        return fixed | self._of_given

    def run(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
        """Compute on the current stream.

        Args:
            inputs: by name.
            outputs: by name; written to.
        """
        values: dict[str, Value] = {**self._constants, **inputs}
        for node, released in zip(self._nodes, self._released, strict=True):
            results = self._apply(node, values)
            values.update(zip(node.outputs, results, strict=False))
            if self._given and node.op == "Transpose" and isinstance(results[0], Operand):
                self._of_given[node.outputs[0]] = results[0]
            for name in released:
                del values[name]
        for name, made in self._made.items():
            value = values[made.source]
            result = value.packed() if isinstance(value, Codes) else plain(value)
            outputs[name].copy_(made.compute(result))


def _without_factor(node: Node, weights: Collection[str]) -> Node:
    """A node that dequantises the block scales of a given weight, with the global scale 1."""
    if node.op != "DequantizeLinear" or node.inputs[0] not in weights or len(node.attributes):
        return node
    return replace(node, inputs=(node.inputs[0], ONE))


def _of_graph(name: str) -> Derived:
    """How what an engine calls `name` follows from a value of the exported graph."""
    return derived(name) or Derived(name.removesuffix(SHARED), lambda value: value)


def _between(
    model: onnx.ModelProto, inputs: Sequence[str], outputs: Sequence[str], where: str
) -> list[Node]:
    """Nodes between inputs and outputs, in the order of the graph.

    A later piece of a text encoder is given a hidden state in place of the graph's own input, and
    takes the length from it, as `fastwan.export.passes.cut_at_blocks` has it built.
    """
    producers = {name: node for node in model.graph.node for name in node.output if name}
    initializers = {tensor.name for tensor in model.graph.initializer}
    own = {value.name for value in model.graph.input} - initializers
    needed: set[str] = set()
    chosen: set[int] = set()
    waiting = [_of_graph(name).source for name in outputs]
    while waiting:
        name = waiting.pop()
        if not name or name in needed or name in inputs or name in initializers:
            continue
        needed.add(name)
        node = producers.get(name)
        if node is None and name in own and len(inputs) == 1:
            continue
        if node is None:
            raise BadInput(f"nothing computes {name!r}", where=where, fix="build the bundle again")
        if (node.domain.replace("ai.onnx", ""), node.op_type) not in OPERATORS:
            raise BadInput(
                f"the operator {node.op_type} of {node.name!r} is not emulated", where=where
            )
        chosen.add(id(node))
        waiting += node.input
    nodes = [_node(node) for node in model.graph.node if id(node) in chosen]
    measured = (needed & own) - set(inputs)
    for node in nodes:
        if node.op != "Shape" and measured & set(node.inputs):
            name = min(measured & set(node.inputs))
            raise BadInput(f"nothing computes {name!r}", where=where, fix="build the bundle again")
    return [
        replace(node, inputs=tuple(inputs[0] if n in measured else n for n in node.inputs))
        for node in nodes
    ]


def _node(node: onnx.NodeProto) -> Node:
    import onnx

    attributes: dict[str, Any] = {}
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        attributes[attribute.name] = value.decode() if isinstance(value, bytes) else value
    return Node(
        node.op_type,
        node.domain.replace("ai.onnx", ""),
        node.name,
        tuple(node.input),
        tuple(node.output),
        attributes,
    )


def _last_uses(nodes: Sequence[Node], kept: set[str]) -> list[list[str]]:
    """For each node the values that nothing after it reads."""
    seen = set(kept)
    released: list[list[str]] = []
    made = {name for node in nodes for name in node.outputs if name}
    for node in reversed(nodes):
        last = [
            name
            for name in dict.fromkeys((*node.inputs, *node.outputs))
            if name in made and name not in seen
        ]
        seen.update(last)
        released.append(last)
    return released[::-1]
