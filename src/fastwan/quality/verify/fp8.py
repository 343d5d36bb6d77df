"""Checks of FP8: codes and quantisers by computations of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from fastwan.errors import BadInput
from fastwan.export import fp8
from fastwan.export.dit_graph import build_dit_graph
from fastwan.export.models.layers import Linear
from fastwan.export.models.wan import WanDiT
from fastwan.export.passes.lower_fp8 import linears
from fastwan.export.recipes import FP8
from fastwan.export.recipes.fp8_operator import activation_scale
from fastwan.manifest import Linear as LinearRecord
from fastwan.quality.verify.executor import MemoryExecutor
from fastwan.quality.verify.graphs import node_signature
from fastwan.quality.verify.quantizer import cut_out, random_values
from fastwan.quality.verify.report import Check
from fastwan.quality.verify.subject import Subject, initializer, stored_tensor

if TYPE_CHECKING:
    from fastwan.export.checkpoint.reader import Checkpoint

_SHOWN = 4
_BF16, _E4M3 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn
_LARGEST = np.float32(fp8.E4M3_MAX)
Array = npt.NDArray[np.float32]


def check_packing(subject: Subject) -> Check:
    """FP8 codes and scales through ml_dtypes' number types, against the stored ones.

    With a checkpoint its weights are quantised anew. Without one a weight must have a code of 448,
    as the largest value of every weight that is not zero has, and no NaN.
    """
    bad: list[str] = []
    compared = 0
    for linear in subject.expected_linears:
        for source, (codes, scale) in _parts(subject, linear).items():
            compared += codes.size
            if subject.checkpoint is None:
                values = codes.view(_E4M3).astype(np.float32)
                good = bool(np.abs(values).max() == _LARGEST or not values.any())
            else:
                expected, factor = _from_checkpoint(subject.checkpoint, source)
                good = bool(np.array_equal(codes, expected) and scale == factor)
            bad += [] if good else [source]
    against = "what the recipe makes" if subject.checkpoint is None else "the checkpoint's weights"
    note = f"{compared} codes against {against} through ml_dtypes"
    return Check(
        name="packing_bit_exact",
        metric="linears whose bytes differ",
        value=float(len(bad)) if compared else None,
        limit=0.0,
        note=f"{note}; {', '.join(bad[:_SHOWN])}" if bad else note,
    )


def _parts(
    subject: Subject, linear: LinearRecord
) -> dict[str, tuple[npt.NDArray[np.uint8], np.float32]]:
    """Codes [N, K] and scale of each checkpoint linear that a stored one holds."""
    weight = initializer(subject.stored, f"{linear.name}.weight")
    rows, columns = weight.shape.numpy()
    codes = np.frombuffer(weight.tobytes(), np.uint8).reshape(rows, columns)
    scale = stored_tensor(initializer(subject.stored, f"{linear.name}.weight_scale")).numpy()
    count = len(linear.sources)
    scales = np.repeat(scale, count)
    if count > 1:
        scales = scales * stored_tensor(initializer(subject.stored, f"{linear.name}_scale")).numpy()
    parts = zip(np.split(codes, count), map(np.float32, scales), strict=True)
    return dict(zip(linear.sources, parts, strict=True))


def _from_checkpoint(
    checkpoint: Checkpoint, source: str
) -> tuple[npt.NDArray[np.uint8], np.float32]:
    weight = checkpoint.transformer.read(f"{source}.weight").float().numpy().astype(_BF16)
    values = weight.astype(np.float32)
    scale = np.maximum(np.abs(values).max() / _LARGEST, np.float32(fp8.SMALLEST_SCALE))
    quotient = (values / scale.astype(_BF16).astype(np.float32)).astype(_BF16)
    codes = np.clip(quotient.astype(np.float32), -_LARGEST, _LARGEST).astype(_E4M3)
    return codes.view(np.uint8), np.float32(scale)


def check_recipe(subject: Subject) -> Check:
    """Every node around a linear is the one that the exporter makes for this activation scale."""
    names = tuple(f"{linear.name}/" for linear in subject.expected_linears)

    def nodes(model: ir.Model) -> dict[str, object]:
        around = (n for n in model.graph if "/fp8/" in str(n.name) or str(n.name).startswith(names))
        return {str(node.name): node_signature(node) for node in around}

    expected = nodes(build_dit_graph(subject.dit_config, subject.shape, subject.recipe))
    found = nodes(subject.stored)
    bad = sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
    note = f"{len(expected)} nodes"
    return Check(
        name="quantizer_recipe",
        metric="nodes around linears that differ from the exporter's",
        value=float(len(bad)) if expected else None,
        limit=0.0,
        note=f"{note}; {', '.join(bad[:_SHOWN])}" if bad else note,
    )


def check_quantizer(subject: Subject, recipe: FP8, lowered: Mapping[str, ir.Model]) -> Check:
    """The quantiser of every linear, cut out of the CPU graphs, against `fastwan.export.fp8`.

    Args:
        lowered: the transformer's graphs of the CPU reference.
    """
    sources = {str(each.matmul.name): str(each.source.name) for each in linears(subject.dit_graph)}
    with torch.device("meta"):
        module = WanDiT(subject.dit_config, subject.check_shape, recipe)
    targeted = {n: part for n, part in module.named_modules() if isinstance(part, Linear)}
    operands = {
        str(node.name): (part, node.inputs[0])
        for part in lowered.values()
        for node in part.graph
        if node.op_type == "MatMul"
    }
    generator = np.random.default_rng(0)
    values = wrong = 0
    bad: list[str] = []
    for linear in subject.expected_linears:
        if linear.node not in operands or linear.node not in sources:
            raise BadInput("CPU reference does not compute this linear", where=linear.name)
        part, operand = operands[linear.node]
        source = sources[linear.node]
        executor = MemoryExecutor(cut_out(part, operand, source), subject.data_folder)
        x = _activation(generator, tuple(int(size) for size in executor.inputs[source].shape))
        (got,) = executor.run({source: x}).values()
        tensor = torch.from_numpy(x).bfloat16()
        name, tokens = f"{linear.name}.input_scale", targeted[linear.name].tokens
        static = module.state_dict().get(name)
        if static is not None:
            static = stored_tensor(initializer(subject.stored, name))
        scale = activation_scale(tensor, static, recipe.activation, tokens or 0)
        want = fp8.codes_of(fp8.scaled(tensor, scale)).float().numpy()
        # Minus zero multiplies like zero: the sign of a zero is not compared.
        differing = int(np.count_nonzero((got + 0).view(np.int32) != (want + 0).view(np.int32)))
        values, wrong = values + x.size, wrong + differing
        bad += [linear.name] if differing else []
    note = f"{len(subject.expected_linears)} quantisers, {values} values"
    return Check(
        name="quantizer_bit_exact",
        metric="values that differ",
        value=float(wrong) if values else None,
        limit=0.0,
        label="emulated",
        note=f"{note}; {', '.join(bad[:_SHOWN])}" if bad else note,
    )


def _activation(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """bf16 values [B, L, K]: random ones, and rows where e4m3 rounds, saturates and underflows."""
    x = random_values(generator, shape).reshape(-1, shape[-1])
    grid = np.arange(0x7F, dtype=np.uint8).view(_E4M3).astype(np.float32)
    ties = (grid[1:] + grid[:-1]) / 2
    for index, row in enumerate(x[:: max(1, len(x) // 64)]):
        # A row with 448 in front has a power of two for its scale, and its ties stay ties.
        row[1:] = generator.choice(ties, row.size - 1) * generator.choice([-1, 1], row.size - 1)
        row[0] = 448
        row *= np.float32(2.0 ** (index % 24 - 16))
    x[len(x) // 2] = 0
    return x.reshape(shape)
