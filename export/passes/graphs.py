"""What the passes share: copying nodes into a model of their own, walking values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx_ir as ir

FASTWAN = "fastwan"
TRT_DOMAIN = "trt"


def copy_value(value: ir.Value) -> ir.Value:
    """A free value with the name, type, shape and constant of `value`."""
    return ir.Value(
        name=value.name, type=value.type, shape=value.shape, const_value=value.const_value
    )


def copy_node(
    node: ir.Node, values: dict[ir.Value, ir.Value], name: str | None, prefix: str = ""
) -> ir.Node:
    """A copy of `node` that reads what `values` has for its inputs; its outputs join `values`.

    What passes noted of the node goes along.

    Args:
        name: of the copy.
        prefix: before the names of its outputs.
    """
    copy = ir.Node(
        node.domain,
        node.op_type,
        [None if value is None else values[value] for value in node.inputs],
        list(node.attributes.values()),
        num_outputs=len(node.outputs),
        name=name,
    )
    copy.meta.update(node.meta)
    for source, target in zip(node.outputs, copy.outputs, strict=True):
        target.name = f"{prefix}{source.name}"
        target.type, target.shape = source.type, source.shape
        values[source] = target
    return copy


def constants(graph: ir.Graph) -> set[ir.Value]:
    """Values that follow from initializers alone, such as a dequantised weight."""
    found: set[ir.Value] = set()
    for node in graph:
        inputs = (value for value in node.inputs if value is not None)
        if all(value.is_initializer() or value in found for value in inputs):
            found.update(node.outputs)
    return found


def with_constants(nodes: Iterable[ir.Node], graph: ir.Graph) -> list[ir.Node]:
    """`nodes` and the constant nodes they need, in the order of `graph`."""
    known = constants(graph)
    wanted = set(nodes)
    queue = list(wanted)
    while queue:
        for value in queue.pop().inputs:
            producer = value.producer() if value is not None and value in known else None
            if producer is not None and producer not in wanted:
                wanted.add(producer)
                queue.append(producer)
    return [node for node in graph if node in wanted]


def submodel(
    model: ir.Model,
    name: str,
    nodes: Sequence[ir.Node],
    outputs: Sequence[ir.Value],
) -> ir.Model:
    """A model of copies of `nodes`, which are in topological order.

    Its inputs are the values that the nodes read and do not make, in the order of first use;
    initializers come along by reference (external data is not read).

    Args:
        model: where `nodes` and `outputs` live; left unchanged.
        name: name of the new graph.
        nodes: what to copy.
        outputs: values of `nodes` to make graph outputs.
    """
    copies: dict[ir.Value, ir.Value] = {}
    inputs: list[ir.Value] = []
    graph = ir.Graph([], [], nodes=[], name=name, opset_imports=dict(model.graph.opset_imports))
    for node in nodes:
        for value in node.inputs:
            if value is None or value in copies:
                continue
            copies[value] = copy_value(value)
            if value.is_initializer():
                graph.initializers.add(copies[value])
            else:
                inputs.append(copies[value])
        graph.append(copy_node(node, copies, node.name))
    graph.inputs.extend(inputs)
    graph.outputs.extend(copies[value] for value in outputs)
    return ir.Model(graph, ir_version=model.ir_version)


def clone(model: ir.Model) -> ir.Model:
    """A copy whose nodes and values may be changed; initializers share their data."""
    copy = submodel(model, str(model.graph.name), list(model.graph), list(model.graph.outputs))
    order = [value.name for value in model.graph.inputs]
    present = {value.name: value for value in copy.graph.inputs}
    unused = {value.name: value for value in model.graph.inputs}
    copy.graph.inputs.clear()
    copy.graph.inputs.extend(
        present[name] if name in present else copy_value(unused[name]) for name in order
    )
    return copy


def required_inputs(node: ir.Node) -> list[ir.Value]:
    """Inputs of a node none of which is optional."""
    inputs = [value for value in node.inputs if value is not None]
    assert len(inputs) == len(node.inputs), f"{node.name} lacks an input"
    return inputs


def nbytes(value: ir.Value) -> int:
    """Bytes of a value of static shape; 0 where type or shape is unknown."""
    if value.dtype is None or value.shape is None or not value.shape.is_static():
        return 0
    elements = 1
    for dimension in value.shape.numpy():
        elements *= dimension
    return int(elements * value.dtype.bitwidth) // 8


def insert_before(anchor: ir.Node, nodes: Iterable[ir.Node]) -> None:
    """Insert nodes into the graph that holds `anchor`, just before it."""
    graph = anchor.graph
    assert graph is not None
    graph.insert_before(anchor, list(nodes))


def constant(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """The initializer `name`, made from `tensor` if the graph does not have it yet."""
    value = graph.initializers.get(name)
    if value is None:
        value = ir.Value(
            name=name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(tensor.shape.numpy()),
            const_value=tensor,
        )
        graph.initializers.add(value)
    return value


def inline(anchor: ir.Node, model: ir.Model, arguments: Sequence[ir.Value], prefix: str) -> None:
    """Replace `anchor` by the nodes of `model`, whose inputs become `arguments`.

    Names made by `model` get `prefix`; the outputs of `anchor` keep theirs.
    """
    graph = anchor.graph
    assert graph is not None
    values: dict[ir.Value, ir.Value] = dict(zip(model.graph.inputs, arguments, strict=True))
    for name, source in model.graph.initializers.items():
        assert source.const_value is not None, f"{name} has no value"
        values[source] = constant(graph, prefix + name, source.const_value)
    copies = [
        copy_node(node, values, f"{prefix}{node.outputs[0].name}", prefix) for node in model.graph
    ]
    insert_before(anchor, copies)
    for old, source in zip(anchor.outputs, model.graph.outputs, strict=True):
        new = values[source]
        new.type, new.shape = old.type, old.shape
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        new.name = old.name
    graph.remove(anchor, safe=True)


def producer(value: ir.Value | None, op_type: str, domain: str = "") -> ir.Node | None:
    """The node that makes `value`, if it is of that type."""
    node = None if value is None else value.producer()
    return node if node is not None and (node.domain, node.op_type) == (domain, op_type) else None


def chain(value: ir.Value | None, *op_types: str) -> list[ir.Node] | None:
    """The nodes that lead to `value`, the last first, each the maker of the first input of the one
    before it; None if they are not of exactly these types."""
    nodes: list[ir.Node] = []
    for op_type in op_types:
        node = producer(value, op_type)
        if node is None:
            return None
        nodes.append(node)
        value = node.inputs[0]
    return nodes


def remove_unread(graph: ir.Graph, node: ir.Node) -> None:
    """Remove a node if nothing reads what it makes, and those before it that are then unread."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        unread = not any(value.uses() or value.is_graph_output() for value in node.outputs)
        if node.graph is not graph or not unread:
            continue
        before = [value.producer() for value in node.inputs if value is not None]
        graph.remove(node, safe=True)
        waiting += [each for each in dict.fromkeys(before) if each is not None]
