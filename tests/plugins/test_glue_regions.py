"""Kinds of glue: what they take of a manifest, what they count, what the library says of them."""

from __future__ import annotations

import ctypes
import dataclasses
from typing import Any

import pytest
import torch

from fastwan.errors import BadInput, EnvironmentLacks
from fastwan.plugins.loader import PluginLibrary
from fastwan.plugins.regions import REGIONS, region_op
from fastwan.plugins.regions.cross_attention import CrossAttention, CrossAttributes
from fastwan.plugins.regions.gelu_quantize import GeluQuantize
from fastwan.plugins.regions.glue import GlueOp
from fastwan.plugins.regions.norm_quantize import NormQuantize
from fastwan.plugins.regions.quantize import Quantize
from fastwan.plugins.regions.residual_norm import ResidualNorm
from fastwan.plugins.regions.residual_norm_quantize import NormAttributes, ResidualNormQuantize
from fastwan.quality.cost import region_op_cost
from fastwan.quality.gpus import GPUS
from testkit.glue_nodes import BOUNDARIES, FULL, SMALL, node_of

NORM = ResidualNormQuantize(128, 256, NormAttributes(1e-6, True), gated=True)
CROSS = CrossAttention(128, 256, 128, CrossAttributes(2, 1e-6, 0.1))
each_small = pytest.mark.parametrize("op", SMALL, ids=lambda op: op.op)
each_full = pytest.mark.parametrize("op", FULL, ids=lambda op: op.op)


def changed(op: GlueOp, **change: Any) -> GlueOp:
    replaced: GlueOp = dataclasses.replace(op, **change)  # type: ignore[type-var]
    return replaced


def test_the_lists_have_every_kind() -> None:
    kinds = {name for name, kind in REGIONS.items() if issubclass(kind, GlueOp)}
    assert kinds
    for nodes in (SMALL, BOUNDARIES, FULL):
        assert {op.op for op in nodes} == kinds


@pytest.mark.parametrize("op", [*BOUNDARIES, *FULL], ids=str)
def test_a_node_is_read_as_it_was_written(op: GlueOp) -> None:
    node, specs = node_of(op)
    assert region_op(node, specs) == op


@each_small
def test_a_node_of_other_tensors_is_refused(op: GlueOp) -> None:
    node, specs = node_of(op)
    first, out = node.inputs[0], node.outputs[-1]
    for name, update, message in (
        (first, {"shape": (2, *specs[first].shape[1:])}, r"not \[1, L, C\]"),
        (first, {"shape": (1, 128, 250)}, r"not \[1, L, C\]"),
        (first, {"shape": (128, 256)}, r"not \[1, L, C\]"),
        (first, {"dtype": "float32"}, f"{op.op} takes"),
        (out, {"dtype": "uint8"}, f"{op.op} takes"),
    ):
        others = specs | {name: specs[name].model_copy(update=update)}
        with pytest.raises(BadInput, match=message):
            region_op(node, others)
    with pytest.raises(BadInput, match="has no attribute 'axis'"):
        region_op(node.model_copy(update={"attributes": {**node.attributes, "axis": 1}}), specs)


@pytest.mark.parametrize(
    ("op", "megabytes"),
    [
        (GeluQuantize(32768, 8960), 752.4),
        (Quantize(32768, 1536), 129.0),
        (ResidualNormQuantize(32768, 1536, NormAttributes(1e-6, True), gated=True), 330.3),
        (ResidualNormQuantize(32768, 1536, NormAttributes(1e-6, False), gated=False), 330.3),
        (NormQuantize(32768, 1536, NormAttributes(1e-6, True)), 129.0),
        (ResidualNorm(32768, 1536, NormAttributes(1e-6, True), gated=True), 302.0),
        (CrossAttention(32768, 1536, 64, CrossAttributes(12, 1e-6, 0.1)), 129.4),
        (CrossAttention(32768, 1536, 512, CrossAttributes(12, 1e-6, 0.1)), 130.2),
    ],
    ids=lambda value: getattr(value, "op", None),
)
def test_the_kernel_moves_what_the_page_says(op: GlueOp, megabytes: float) -> None:
    (launch,) = op.launches
    assert launch.bytes_moved / 1e6 == pytest.approx(megabytes, abs=0.06)
    assert launch.bytes_moved == sum(op.traffic.values())
    assert op.workspace_bytes == 0


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"add_one": 1}, "eps missing"),
        ({"eps": 1e-6}, "add_one missing"),
        ({"eps": 0.0, "add_one": 1}, "eps 0.0"),
        ({"eps": 1e-6, "add_one": 2}, "add_one 2"),
        ({"eps": 1e-6, "add_one": True}, "add_one True"),
    ],
)
def test_a_norm_without_its_attributes_is_refused(
    attributes: dict[str, float | int], message: str
) -> None:
    node, specs = node_of(NORM)
    assert region_op(node, specs) == NORM
    with pytest.raises(BadInput, match=message):
        region_op(node.model_copy(update={"attributes": attributes}), specs)


def test_a_norm_has_six_inputs_or_five_without_its_gate() -> None:
    node, specs = node_of(NORM)
    y, bias, hidden, _, scale, shift = node.inputs
    without = node.model_copy(update={"inputs": (y, bias, hidden, scale, shift)})
    assert region_op(without, specs) == changed(NORM, gated=False)
    with pytest.raises(BadInput, match="has 4 inputs, not 6, or 5 without a gate"):
        region_op(node.model_copy(update={"inputs": (y, bias, hidden, scale)}), specs)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("columns", 272, "272 columns are not a multiple of 128"),
        ("columns", 5248, "5248 columns are not a multiple of 128 up to 5120"),
        ("eps", -1.0, "eps -1 must not be negative"),
        ("eps", float("nan"), "eps nan"),
        ("flags", 8, "unknown flags 0x8"),
    ],
)
def test_the_library_refuses_a_norm_that_does_not_fit(
    library: PluginLibrary, monkeypatch: pytest.MonkeyPatch, name: str, value: float, message: str
) -> None:
    desc = NORM.desc()
    monkeypatch.setattr(ResidualNormQuantize, "desc", lambda _: desc)
    library.workspace_bytes(NORM)
    setattr(desc, name, value)
    with pytest.raises(BadInput, match=message):
        library.workspace_bytes(NORM)


@pytest.mark.parametrize(("flags", "fits"), [(1, True), (2, False)], ids=["add_one", "a gate"])
def test_a_norm_without_a_residual_has_no_gate(
    library: PluginLibrary, monkeypatch: pytest.MonkeyPatch, flags: int, fits: bool
) -> None:
    op = NormQuantize(128, 256, NormAttributes(1e-6, add_one=True))
    desc = op.desc()
    desc.flags = flags
    monkeypatch.setattr(NormQuantize, "desc", lambda _: desc)
    if fits:
        assert library.workspace_bytes(op) == 0
        return
    with pytest.raises(BadInput, match="unknown flags 0x2"):
        library.workspace_bytes(op)


def test_only_the_cross_attention_has_operations() -> None:
    for op in FULL:
        (launch,) = op.launches
        assert bool(launch.operations) is isinstance(op, CrossAttention)
    few, usual = (dataclasses.replace(CROSS, keys=keys).launches[0] for keys in (64, 512))
    assert few.operations == 4 * 128 * 256 * 64
    assert usual.operations == 3 * few.operations
    assert region_op_cost(CROSS, GPUS["rtx5090"]).seconds > 0


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"eps": 1e-6, "scale": 0.1}, "num_heads missing"),
        ({"num_heads": 2, "scale": 0.1}, "eps missing"),
        ({"num_heads": 2, "eps": 1e-6}, "scale missing"),
        ({"num_heads": 2, "eps": 1e-6, "scale": 0.0}, "scale 0.0"),
        ({"num_heads": 3, "eps": 1e-6, "scale": 0.1}, "of 3 heads"),
    ],
)
def test_a_cross_attention_without_its_attributes_is_refused(
    attributes: dict[str, float | int], message: str
) -> None:
    node, specs = node_of(CROSS)
    assert region_op(node, specs) == CROSS
    with pytest.raises(BadInput, match=message):
        region_op(node.model_copy(update={"attributes": attributes}), specs)


def test_a_cross_attention_of_other_keys_is_refused() -> None:
    node, specs = node_of(CROSS)
    for name, shape, message in (
        ("k", (1, 130, 256), r"keys \[1, 130, 256\]"),
        ("v", (1, 2, 64, 128), "CrossAttention takes"),
        ("key_bias", (64,), "CrossAttention takes"),
        ("key_tiles", (2,), "CrossAttention takes"),
    ):
        others = specs | {name: specs[name].model_copy(update={"shape": shape})}
        with pytest.raises(BadInput, match=message):
            region_op(node, others)
    with pytest.raises(BadInput, match="has 6 inputs"):
        region_op(node.model_copy(update={"inputs": node.inputs[:-1]}), specs)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("columns", 272, "272 columns are not a multiple of 128"),
        ("keys", 0, "0 keys are not a multiple of 64"),
        ("keys", 96, "96 keys are not a multiple of 64"),
        ("eps", -1.0, "eps -1 must not be negative"),
        ("softmax_scale", 0.0, "softmax_scale 0 must be positive"),
        ("flags", 1, "unknown flags 0x1"),
    ],
)
def test_the_library_refuses_a_cross_attention_that_does_not_fit(
    library: PluginLibrary, monkeypatch: pytest.MonkeyPatch, name: str, value: float, message: str
) -> None:
    desc = CROSS.desc()
    monkeypatch.setattr(CrossAttention, "desc", lambda _: desc)
    library.workspace_bytes(CROSS)
    setattr(desc, name, value)
    with pytest.raises(BadInput, match=message):
        library.workspace_bytes(CROSS)


@each_full
def test_the_library_takes_the_node(each_library: PluginLibrary, op: GlueOp) -> None:
    assert each_library.workspace_bytes(op) == op.workspace_bytes


@each_small
def test_the_library_refuses_numbers_that_do_not_fit(library: PluginLibrary, op: GlueOp) -> None:
    library.workspace_bytes(op)
    for change in ({"rows": 0}, {"columns": 250}, {"columns": 0}):
        with pytest.raises(BadInput, match=r"rows of .* columns"):
            library.workspace_bytes(changed(op, **change))
    huge = changed(op, rows=(1 << 31) - 1, columns=1536)
    with pytest.raises(BadInput, match="too large"):
        library.workspace_bytes(huge)


def test_the_library_refuses_another_interface(
    library: PluginLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    op = SMALL[0]
    desc = op.desc()
    monkeypatch.setattr(type(op), "desc", lambda _: desc)
    library.workspace_bytes(op)
    desc.kind = 99
    with pytest.raises(BadInput, match="unknown glue kind 99"):
        library.workspace_bytes(op)
    desc.kind, desc.struct_bytes = op.kind, ctypes.sizeof(desc) - 4
    with pytest.raises(BadInput, match="another interface"):
        library.workspace_bytes(op)


@each_small
def test_addresses_are_checked_before_anything_is_launched(
    library: PluginLibrary, op: GlueOp
) -> None:
    inputs, outputs = [1 << 20] * len(op.inputs), [1 << 20] * len(op.outputs)
    for wrong in (0, (1 << 20) + 8):
        with pytest.raises(BadInput, match=f"input {len(inputs) - 1} is null or not aligned"):
            library.enqueue(op, [*inputs[:-1], wrong], outputs, 0, 0, 0)
        with pytest.raises(BadInput, match="output 0 is null or not aligned"):
            library.enqueue(op, inputs, [wrong, *outputs[1:]], 0, 0, 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@each_small
def test_without_a_gpu_the_library_says_so(library: PluginLibrary, op: GlueOp) -> None:
    with pytest.raises(EnvironmentLacks, match=r"device|driver"):
        library.enqueue(op, [1 << 20] * len(op.inputs), [1 << 20] * len(op.outputs), 0, 0, 0)
