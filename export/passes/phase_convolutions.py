"""Compute the last upsampling of the decoder and the two convolutions behind it phase by phase."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from fastwan.export.passes.graphs import constant, insert_before

Phase = tuple[int, int]
PHASES: tuple[Phase, ...] = ((0, 0), (0, 1), (1, 0), (1, 1))
"""Row and column of an upsampled pixel within the two by two that one pixel became."""


@dataclass(frozen=True)
class _Pattern:
    """What is divided.

    Attributes:
        source: what the first convolution reads once it is divided.
        first, last: the two convolutions.
        growth: of each image of `source` that many are made, each by a matrix [C, I] of its own;
            one identity where nothing grows.
    """

    source: ir.Value
    first: ir.Node
    last: ir.Node
    growth: tuple[np.ndarray, ...]


def phase_convolutions(model: ir.Model) -> tuple[ir.Model, bool]:
    """Divide ``Conv(Relu(Conv(Resize(x))))`` by the parity of rows and columns.

    Of the pixels that the nearest neighbour doubles, a 3x3 convolution reads two by two different
    ones, which two depends on the parity of its place: four 2x2 convolutions over `x` with summed
    weights give the upsampled result, one parity each. The second convolution is applied to them
    where they lie, each parity's share of all four results, and the sum is interleaved once: the
    upsampled tensors are never made. A 1x1 convolution that makes several images of one in front,
    ``Reshape(Conv(x))``, is multiplied into the first weights.

    Weights are multiplied and summed in fp64 and rounded to their own dtype, so a result may differ
    in its last bits.

    Requires: nearest neighbours with a factor of 2 in both axes, 3x3 filters with pads of 1, one
    group and no strides.
    Ensures: the same values but for that rounding; the name of the result; names of new nodes begin
    with that of the second convolution.

    Args:
        model: changed in place.
    """
    changed = False
    for last in list(model.graph):
        found = _pattern(last)
        if found is not None:
            _replace(model.graph, found)
            changed = True
    return model, changed


def _pattern(last: ir.Node) -> _Pattern | None:
    """The pattern that a second convolution ends."""
    if not _is_conv(last, 3):
        return None
    relu = _only_producer(last.inputs[0], "Relu")
    first = None if relu is None else _only_producer(relu.inputs[0], "Conv")
    resize = None if first is None else _only_producer(first.inputs[0], "Resize")
    if first is None or resize is None or not _is_conv(first, 3) or not _doubles(resize):
        return None
    source = resize.inputs[0]
    if source is None:
        return None
    grown = _growth(source)
    if grown is not None:
        return _Pattern(grown[0], first, last, grown[1])
    return _Pattern(source, first, last, (np.eye(_weight(first).shape[1]),))


def _growth(value: ir.Value) -> tuple[ir.Value, tuple[np.ndarray, ...]] | None:
    """What a value was grown from, and the matrices of its images."""
    reshape = _only_producer(value, "Reshape")
    conv = None if reshape is None else _only_producer(reshape.inputs[0], "Conv")
    if conv is None or not _is_conv(conv, 1):
        return None
    bias = _bias(conv)
    if bias is not None and bias.any():
        return None
    source, made = conv.inputs[0], conv.outputs[0].shape
    if source is None or made is None or value.shape is None:
        return None
    images, channels, *size = made.numpy()
    if not value.shape.is_static() or [*value.shape.numpy()[2:]] != size:
        return None
    count = value.shape.numpy()[0] // images
    if (images * count, channels // count) != tuple(value.shape.numpy()[:2]):
        return None
    weight = _weight(conv).astype(np.float64)[:, :, 0, 0]
    return source, tuple(np.split(weight, count))


def _only_producer(value: ir.Value | None, op: str) -> ir.Node | None:
    """The node that makes a value that nothing else reads, if it is of that type."""
    node = None if value is None else value.producer()
    if node is None or value is None or node.op_type != op or node.domain:
        return None
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    return node if len(value.uses()) == 1 and value not in graph.outputs else None


def _is_conv(node: ir.Node, size: int) -> bool:
    """Whether a node convolves with constant filters of that size and keeps height and width."""
    if node.op_type != "Conv" or node.domain or len(node.inputs) < 2:
        return False
    weight = node.inputs[1]
    if weight is None or weight.const_value is None:
        return False
    if list(weight.const_value.shape)[2:] != [size, size]:
        return False
    if any(value is not None and value.const_value is None for value in node.inputs[2:]):
        return False
    pads, strides, dilations, group = (
        _ints(node, name, default)
        for name, default in (("pads", 0), ("strides", 1), ("dilations", 1), ("group", 1))
    )
    return set(pads) == {size // 2} and {*strides, *dilations, *group} == {1}


def _ints(node: ir.Node, name: str, default: int) -> Sequence[int]:
    attribute = node.attributes.get(name)
    if attribute is None:
        return [default]
    value = attribute.value
    return [value] if isinstance(value, int) else list(value)


def _doubles(resize: ir.Node) -> bool:
    scales = resize.inputs[2] if len(resize.inputs) > 2 else None
    if scales is None or scales.const_value is None:
        return False
    mode = resize.attributes.get("mode")
    factors = scales.const_value.numpy().tolist()
    return mode is not None and mode.value == "nearest" and factors == [1.0, 1.0, 2.0, 2.0]


def first_filters(weight: np.ndarray) -> dict[Phase, np.ndarray]:
    """Filters [O, I, 2, 2] over the small image, by the phase of their result.

    Args:
        weight: [O, I, 3, 3] over the doubled one, fp64.
    """
    return {(p, q): np.einsum("rt,cs,oits->oirc", _SEEN[p], _SEEN[q], weight) for p, q in PHASES}


_SEEN = (np.array([[1, 0, 0], [0, 1, 1]]), np.array([[1, 1, 0], [0, 0, 1]]))
"""By phase, which taps of a filter of three see the first and the second of two pixels: those of
rows i - 1 and i where the result is row 2i, of i and i + 1 where it is row 2i + 1."""


def second_filters(weight: np.ndarray) -> dict[Phase, np.ndarray]:
    """Filters [4 O, I, 2, 2] over one phase each, results of all four phases.

    Channel ``(2 P + Q) O + o`` is channel o of the result at phase (P, Q).

    Args:
        weight: [O, I, 3, 3] over the interleaved image, fp64.
    """
    filters = {}
    for p, q in PHASES:
        shares = [
            np.einsum("rt,cs,oits->oirc", _SHARE[p][P], _SHARE[q][Q], weight) for P, Q in PHASES
        ]
        filters[p, q] = np.concatenate(shares)
    return filters


_SHARE = (
    (np.array([[0, 1, 0], [0, 0, 0]]), np.array([[1, 0, 0], [0, 0, 1]])),
    (np.array([[1, 0, 0], [0, 0, 1]]), np.array([[0, 0, 0], [0, 1, 0]])),
)
"""By the phase that is read and that of the result, which of two rows meets which tap. Of phase 0
rows i and i + 1 are read, of phase 1 rows i - 1 and i."""


def _replace(graph: ir.Graph, found: _Pattern) -> None:
    first, last, source = found.first, found.last, found.source
    prefix, result, count = str(last.name), last.outputs[0], len(found.growth)
    one, two = _filters(found)
    nodes: list[ir.Node] = []

    def node(
        op: str,
        name: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, str | int | Sequence[int]] | None = None,
    ) -> ir.Value:
        given = [each for each in inputs if each is not None]
        made = ir.node(op, given, attributes=attributes, name=f"{prefix}/{name}")
        value = made.outputs[0]
        value.name, value.type = f"{prefix}/{name}", source.type
        nodes.append(made)
        return value

    def held(name: str, values: np.ndarray) -> ir.Value:
        return constant(graph, f"{prefix}/{name}", ir.tensor(values, name=name))

    dtype = _weight(last).dtype
    biases = [
        None if bias is None else held(f"{name}.bias", np.tile(bias, times))
        for name, bias, times in (
            ("first", _bias(first), count),
            ("second", _bias(last), count * len(PHASES)),
        )
    ]
    total: ir.Value | None = None
    for phase in PHASES:
        (p, q), tag = phase, f"{phase[0]}{phase[1]}"
        weight = held(f"first_{tag}.weight", one[phase].astype(dtype))
        # The two rows that are read begin a row earlier where the phase is 0.
        pads = [1 - p, 1 - q, p, q]
        attributes = {"pads": pads, "kernel_shape": [2, 2]}
        small = node("Conv", f"first_{tag}", [source, weight, biases[0]], attributes)
        rectified = node("Relu", f"relu_{tag}", [small])
        weight = held(f"second_{tag}.weight", two[phase].astype(dtype))
        share = node(
            "Conv",
            f"second_{tag}",
            [rectified, weight, biases[1] if total is None else None],
            {"pads": [p, q, 1 - p, 1 - q], "kernel_shape": [2, 2]},
        )
        total = share if total is None else node("Add", f"sum_{tag}", [total, share])
    assert total is not None
    if count > 1:
        assert result.shape is not None
        images, channels, height, width = result.shape.numpy()
        sizes = [images, len(PHASES) * channels, height // 2, width // 2]
        shape = held("images.shape", np.array(sizes, np.int64))
        total = node("Reshape", "images", [total, shape])
    interleaved = node("DepthToSpace", "interleaved", [total], {"blocksize": 2, "mode": "DCR"})
    insert_before(last, nodes)
    interleaved.type, interleaved.shape = result.type, result.shape
    name = result.name
    result.replace_all_uses_with(interleaved, replace_graph_outputs=True)
    result.name, interleaved.name = f"{name}/before", name
    for old in (last, *_between(last, source)):
        graph.remove(old, safe=True)


def _filters(found: _Pattern) -> tuple[dict[Phase, np.ndarray], dict[Phase, np.ndarray]]:
    """Filters of both convolutions by phase, for all images of one at once, fp64.

    Channels of the first result are (image, channel), of the second (image, phase, channel); no
    image reads another.
    """
    one = first_filters(_weight(found.first).astype(np.float64))
    two = second_filters(_weight(found.last).astype(np.float64))
    grown = {
        phase: np.concatenate([np.einsum("oirc,ij->ojrc", each, m) for m in found.growth])
        for phase, each in one.items()
    }
    count = len(found.growth)
    apart = {}
    for phase, each in two.items():
        outputs, inputs = each.shape[:2]
        apart[phase] = np.zeros((count * outputs, count * inputs, 2, 2))
        for image in range(count):
            rows = slice(image * outputs, (image + 1) * outputs)
            apart[phase][rows, image * inputs : (image + 1) * inputs] = each
    return grown, apart


def _between(last: ir.Node, source: ir.Value) -> list[ir.Node]:
    """Nodes from `last` back to `source`, without `last`."""
    found, node = [], last
    while (value := node.inputs[0]) is not None and value is not source:
        producer = value.producer()
        assert producer is not None
        found.append(producer)
        node = producer
    return found


def _weight(conv: ir.Node) -> np.ndarray:
    weight = conv.inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    return np.asarray(weight.const_value.numpy())


def _bias(conv: ir.Node) -> np.ndarray | None:
    bias = conv.inputs[2] if len(conv.inputs) > 2 else None
    if bias is None or bias.const_value is None:
        return None
    return np.asarray(bias.const_value.numpy())
