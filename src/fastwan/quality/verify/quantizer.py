"""`quantizer_recipe` and `quantizer_bit_exact` of NVFP4: the activation quantiser, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import torch
from onnx import numpy_helper

from fastwan.errors import BadInput
from fastwan.export.passes.expand_nvfp4 import E4M3
from fastwan.export.passes.graphs import submodel
from fastwan.export.passes.split_dit import split_dit
from fastwan.export.recipes.nvfp4 import BLOCK, NVFP4, QUANTISE
from fastwan.plugins.nvfp4 import fake_quantize_activation
from fastwan.quality.verify.executor import MemoryExecutor
from fastwan.quality.verify.report import Check
from fastwan.quality.verify.subject import Subject

RANDOM_VALUES = 1 << 20
"""Fewest random values that the quantisers of a bundle are run on together."""

_SHOWN = 4
Array = npt.NDArray[np.float32]


def check_recipe(subject: Subject, recipe: NVFP4) -> Check:
    """Each quantise node of ``dit.onnx`` has the recipe's scale, axis, block and scale type."""
    graph = subject.proto(subject.graph("dit").file).graph
    scales = {tensor.name: tensor for tensor in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for value in node.input:
            readers.setdefault(value, []).append(node)
    wanted = {"axis": -1, "block_size": BLOCK, "scale_type": E4M3}
    count, bad = 0, []
    for node in graph.node:
        if (node.domain, node.op_type) != QUANTISE:
            continue
        count += 1
        again = [r.input[1] for r in readers.get(node.output[1], []) if len(r.input) > 1]
        good = (
            {attribute.name: attribute.i for attribute in node.attribute} == wanted
            and bool(again)
            and all(
                _scalar(subject, scales.get(name)) == recipe.activation_global_scale
                for name in (node.input[1], *again)
            )
        )
        if not good:
            bad.append(node.name)
    note = f"{count} quantise nodes"
    note = f"{note}; {', '.join(bad[:_SHOWN])}" if bad else note
    value = float(len(bad)) if count else None
    return Check(
        name="quantizer_recipe",
        metric="quantise nodes that differ",
        value=value,
        limit=0.0,
        note=note,
    )


def _scalar(subject: Subject, tensor: onnx.TensorProto | None) -> float | None:
    if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT or tensor.dims:
        return None
    return float(numpy_helper.to_array(tensor, str(subject.data_folder)))


def check_quantizer(subject: Subject, recipe: NVFP4, lowered: Mapping[str, ir.Model]) -> Check:
    """The quantiser of every linear, cut out of the CPU graphs, against `nvfp4`.

    Args:
        lowered: the transformer's graphs of the CPU reference.
    """
    sources = quantised_values(subject.dit_graph)
    generator = np.random.default_rng(0)
    values = wrong = 0
    rounds = 0
    bad: set[str] = set()
    found = list(_quantisers(subject, lowered, sources))
    while found and (rounds == 0 or values < RANDOM_VALUES):
        for name, executor, source in found:
            shape = tuple(int(size) for size in executor.inputs[source].shape)
            x = _with_edges(generator, shape) if rounds == 0 else random_values(generator, shape)
            (got,) = executor.run({source: x}).values()
            want = fake_quantize_activation(
                torch.from_numpy(x), recipe.activation_global_scale
            ).numpy()
            # Minus zero multiplies like zero: the sign of a zero is not compared.
            differing = int(np.count_nonzero((got + 0).view(np.int32) != (want + 0).view(np.int32)))
            values += x.size
            wrong += differing
            if differing:
                bad.add(name)
        rounds += 1
    note = f"{len(found)} quantisers, {values} values"
    note = f"{note}; {', '.join(sorted(bad)[:_SHOWN])}" if bad else note
    complete = len(found) == len(subject.expected_linears) and values >= RANDOM_VALUES
    return Check(
        name="quantizer_bit_exact",
        metric="values that differ",
        value=float(wrong) if complete else None,
        limit=0.0,
        label="emulated",
        note=note,
    )


def quantised_values(model: ir.Model) -> dict[str, str]:
    """By MatMul node the value whose quantised form it multiplies, in a graph with FP4 nodes."""
    found = {}
    for node in model.graph:
        if node.op_type != "MatMul":
            continue
        value = node.inputs[0]
        producer = None if value is None else value.producer()
        while producer is not None and producer.op_type in ("Cast", "DequantizeLinear"):
            value = producer.inputs[0]
            producer = None if value is None else value.producer()
        if producer is not None and producer.op_type == QUANTISE[1]:
            found[str(node.name)] = str(producer.inputs[0].name)  # type: ignore[union-attr]
    return found


def _quantisers(
    subject: Subject, lowered: Mapping[str, ir.Model], sources: Mapping[str, str]
) -> Iterator[tuple[str, MemoryExecutor, str]]:
    folder = subject.data_folder
    nodes = {}
    for part in lowered.values():
        for node in part.graph:
            if node.op_type == "MatMul" and "/lowered/" in str(node.name):
                nodes[str(node.name).split("/lowered/")[0]] = (part, node)
    for linear in subject.expected_linears:
        if linear.name not in nodes or linear.node not in sources:
            raise BadInput("CPU reference does not compute this linear", where=linear.name)
        part, matmul = nodes[linear.name]
        source = sources[linear.node]
        yield linear.name, MemoryExecutor(cut_out(part, matmul.inputs[0], source), folder), source


def cut_out(model: ir.Model, operand: ir.Value | None, source: str) -> ir.Model:
    """The nodes between the value `source` and a value that depends on it.

    Raises:
        BadInput: the operand depends on something else.
    """
    assert operand is not None
    wanted: set[ir.Node] = set()
    start: ir.Value | None = None
    queue = [operand]
    while queue:
        value = queue.pop()
        producer = value.producer()
        if value.name == source:
            start = value
        elif producer is None:
            raise BadInput(f"reads {value.name} beside {source}", where=str(operand.name))
        elif producer not in wanted:
            wanted.add(producer)
            queue += [v for v in producer.inputs if v is not None and not v.is_initializer()]
    if start is None or not wanted:
        raise BadInput(f"does not read {source}", where=str(operand.name))
    nodes = [node for node in model.graph if node in wanted]
    cut = submodel(model, str(operand.name), nodes, [operand])
    (given,) = cut.graph.inputs
    assert start.shape is not None
    given.type, given.shape = ir.TensorType(ir.DataType.FLOAT), start.shape
    return cut


def _with_edges(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Random values with the edge cases in front."""
    x = random_values(generator, shape).reshape(-1)
    edges = edge_cases()[: x.size]
    x[: edges.size] = edges
    return x.reshape(shape)


def random_values(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """bf16 values: normal ones, each block at a magnitude of its own."""
    blocks = generator.standard_normal((int(np.prod(shape)) // BLOCK, BLOCK), np.float32)
    exponents = generator.integers(-12, 10, (blocks.shape[0], 1))
    x = torch.from_numpy(np.ldexp(blocks, exponents).astype(np.float32))
    return np.asarray(x.bfloat16().float().numpy().reshape(shape))


def edge_cases() -> Array:
    """Blocks of 16 bf16 values: ties, subnormals, zeros, saturation, every exponent.

    The first value of a block sets its scale, the others are where e2m1 rounds.
    """
    grid = np.array([0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 5, 6], np.float32)
    near = np.concatenate([grid * np.float32(1 - 2**-8), grid, grid * np.float32(1 + 2**-7)])
    blocks = [np.zeros(BLOCK, np.float32), np.full(BLOCK, -0.0, np.float32)]
    # Scales 2**k and those between two e4m3 numbers, down to where they round to zero and up
    # to where they saturate at 448.
    for exponent in range(-14, 14):
        for mantissa in (1.0, 1.0625, 1.125, 1.1875, 1.3125, 1.9375, 1.96875):
            scale = np.float32(mantissa * 2.0**exponent)
            for part in np.split(near, 3):
                for sign in (1, -1):
                    block = np.concatenate([[6.0], part[: BLOCK - 1] * sign]) * scale
                    blocks.append(block.astype(np.float32))
    # Every exponent that fp32 and bf16 share, smallest subnormal and largest number included.
    for exponent in range(-133, 128):
        block = np.ldexp(np.float32(1), exponent - np.arange(BLOCK)).astype(np.float32)
        blocks.append(block * np.where(np.arange(BLOCK) % 2, -1, 1).astype(np.float32))
    values = torch.from_numpy(np.concatenate(blocks)).bfloat16().float()
    return np.asarray(values.numpy())


def lowered_parts(subject: Subject) -> dict[str, ir.Model]:
    """The transformer's CPU graphs: as shipped, or lowered now at a small shape."""
    if subject.check_shape != subject.shape:
        return subject.lowered.parts
    parts = {}
    for name in split_dit(subject.dit_graph):
        file = subject.graph(name).cpu_file
        if file is None:
            raise BadInput("bundle has no CPU reference", where=name, fix="build it again")
        parts[name] = subject.load(file)
    return parts
