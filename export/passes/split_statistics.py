"""Let the statistic of an RMS norm be computed from the GEMM's output rather than from a copy."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

from fastwan.export.passes.graphs import constant, constants, insert_before, nbytes

SUFFIX = "/statistic"
_ROW = 64
"""A value of so many times fewer bytes than another is a factor of its rows."""
_FEW = 16
"""A slice of so many times fewer bytes is a sample: it reads what the statistic reads."""
_MOVED = {"Cast", "Mul", "Reshape"}
_WALKED = {"Add", "Cast", "Mul", "Reshape", "Slice"}


def split_statistics(model: ir.Model) -> tuple[ir.Model, bool]:
    """Give the mean of squares of each RMS norm its own path from the GEMM before it.

    Where a transpose follows the norm, the builder makes two kernels of it and stores what both
    need, the biased fp32 value of twice the size of the GEMM's output. Computed twice, from equal
    constants of different names, nothing is stored: 302 MB less for a norm over 32,768 x 1536.

    A norm whose heads `attend_rows` left in rows needs none of this.

    Requires: the norm as it is traced, ``ReduceMean(Mul(x, x))``.
    Ensures: the same values; every node between the mean and the nearest value that is not an
    elementwise function of one other, constants and factors of rows apart, exists twice if
    constants take part in it and any of these values is read by more than the mean.

    Args:
        model: changed in place.
    """
    changed = False
    fixed = constants(model.graph)
    for node in list(model.graph):
        square = _producer(node.inputs[0]) if node.op_type == "ReduceMean" else None
        if square is None or square.op_type != "Mul":
            continue
        left, right = square.inputs
        if left is None or right is None or _origin(left) is not _origin(right):
            continue
        if _stays_in_rows(_origin(left)):
            continue
        path = _path(left, fixed)
        if not (_read_elsewhere(_origin(left), square) or _branches(path, square)):
            continue
        if any(v.is_initializer() for step in path for v in step.inputs[1:] if v is not None):
            copies = _copy(model.graph, square, path, fixed)
            square.replace_input_with(0, copies[left])
            square.replace_input_with(1, copies[left])
            _move_samples(_origin(left), copies)
            changed = True
    return model, changed


def _producer(value: ir.Value | None) -> ir.Node | None:
    return None if value is None else value.producer()


def _origin(value: ir.Value) -> ir.Value:
    """What a value was cast from."""
    node = value.producer()
    while node is not None and node.op_type == "Cast" and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value


def _read_elsewhere(origin: ir.Value, square: ir.Node) -> bool:
    """Whether `origin` is read by more than `square` and the casts before it."""
    readers = [use.node for use in origin.uses()]
    while readers:
        node = readers.pop()
        if node is square:
            continue
        if node.op_type != "Cast":
            return True
        readers += [use.node for use in node.outputs[0].uses()]
    return False


def _stays_in_rows(origin: ir.Value) -> bool:
    """Whether heads of what is normed are read row by row, in an attention of rank 3.

    One kernel norms and writes it then, and reads the GEMM's output once.
    """
    waiting, seen = [origin], set()
    while waiting:
        for use in waiting.pop().uses():
            node = use.node
            if node.op_type == "Transpose" and len(node.attributes["perm"].as_ints()) == 3:
                return True
            if node.op_type in _MOVED and node not in seen:
                seen.add(node)
                waiting.append(node.outputs[0])
    return False


def _branches(path: list[ir.Node], square: ir.Node) -> bool:
    """Whether a value inside a path is read by more than the path."""
    inside = {*path, square, *(_producer(value) for value in square.inputs)}
    return any(use.node not in inside for step in path for use in step.outputs[0].uses())


def _path(value: ir.Value, fixed: set[ir.Value]) -> list[ir.Node]:
    """Nodes that lead to `value` from the nearest one that is no function of a single value.

    In order of execution, each with the moving value as its first input.
    """
    path: list[ir.Node] = []
    node = value.producer()
    while node is not None and node.op_type in _WALKED:
        moving, *others = node.inputs
        if moving is None or not all(_spares(v, moving, fixed) for v in others):
            break
        path.insert(0, node)
        node = moving.producer()
    return path


def _constant(value: ir.Value, fixed: set[ir.Value]) -> bool:
    return value.is_initializer() or value in fixed


def _spares(value: ir.Value | None, moving: ir.Value, fixed: set[ir.Value]) -> bool:
    """Whether two nodes may read `value` at no cost: a constant, or a factor a row."""
    if value is None or _constant(value, fixed):
        return True
    return 0 < nbytes(value) * _ROW <= nbytes(moving)


def _move_samples(origin: ir.Value, copies: dict[ir.Value, ir.Value]) -> None:
    """Let slices that leave few rows of `origin` read its copy, as the statistic does."""
    for use in list(origin.uses()):
        node = use.node
        few = node.op_type == "Slice" and nbytes(node.outputs[0]) * _FEW <= nbytes(origin)
        if few and origin in copies:
            node.replace_input_with(use.idx, copies[origin])


def _copy(
    graph: ir.Graph, anchor: ir.Node, path: list[ir.Node], fixed: set[ir.Value]
) -> dict[ir.Value, ir.Value]:
    """Copy `path` before `anchor`; returns what is made by what it is the copy of."""
    nodes: list[ir.Node] = []
    current = path[0].inputs[0]
    assert current is not None
    prefix = str(anchor.name)

    def own(value: ir.Value | None) -> ir.Value | None:
        """A constant's twin: another initializer over the same data."""
        if value is None:
            return None
        producer = value.producer()
        if not _constant(value, fixed):  # a factor a row: its last node again
            assert producer is not None
            inputs = [
                v if v is None or not _constant(v, fixed) else own(v) for v in producer.inputs
            ]
            return add(producer, inputs)
        if producer is not None:
            return add(producer, [own(v) for v in producer.inputs])
        if value.dtype is None or not value.dtype.is_floating_point():
            return value
        name = f"{value.name}{SUFFIX}"
        twin = graph.initializers.get(name)
        if twin is None:
            twin = ir.Value(
                name=name, type=value.type, shape=value.shape, const_value=value.const_value
            )
            graph.initializers.add(twin)
        return twin

    def add(node: ir.Node, inputs: list[ir.Value | None]) -> ir.Value:
        copy = ir.Node(
            node.domain,
            node.op_type,
            inputs,
            list(node.attributes.values()),
            name=f"{node.name}{SUFFIX}/{prefix}",
        )
        source, result = node.outputs[0], copy.outputs[0]
        result.name = f"{source.name}{SUFFIX}/{prefix}"
        result.type, result.shape = source.type, source.shape
        nodes.append(copy)
        return result

    def multiply_by_ones(value: ir.Value) -> ir.Value:
        assert value.shape is not None
        width = value.shape[-1]
        assert isinstance(width, int)
        ones = ir.tensor(np.ones(width, ml_dtypes.bfloat16))
        node = ir.node("Mul", [value, constant(graph, f"{prefix}{SUFFIX}/ones", ones)])
        node.name = f"{prefix}{SUFFIX}/own"
        result = node.outputs[0]
        result.name, result.type, result.shape = f"{node.name}/out", value.type, value.shape
        nodes.append(node)
        return result

    if path[0].op_type == "Cast" and current.dtype == ir.DataType.BFLOAT16:
        # Both paths would begin with this cast, and the builder store its fp32 result for both.
        current = multiply_by_ones(current)
    copies = {}
    for node in path:
        current = add(node, [current, *(own(v) for v in node.inputs[1:])])
        copies[node.outputs[0]] = current
    insert_before(anchor, nodes)
    return copies
