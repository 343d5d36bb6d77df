"""Kernels of two bundles matched by the nodes that they compute."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from onnx import helper as oh

from fastwan.bundle import open_bundle
from fastwan.quality.compare.nodes import ExportedGraph
from fastwan.quality.compare.report import StaticComparison
from fastwan.quality.compare.static import Side, compare_static, match
from fastwan.quality.compare.text import patterns
from fastwan.quality.cost import Cost
from fastwan.quality.kernels import Kernel, block_of, bundle_kernels, by_block
from fastwan.quality.report import inspect_bundle


def kernel(name: str, *, kind: str = "memory", dtype: str = "BFloat16", moved: int = 8) -> Kernel:
    return Kernel(
        name=name, place="engine", component="dit", runs="step", kind=kind, dtype=dtype,
        nodes=(), reads=(), writes=(), weight_bytes=0, cost=Cost(1, moved), block=None,
    )  # fmt: skip


def side(*kernels: tuple[Kernel, str]) -> Any:
    """Kernels with the nodes that each computes, in words."""
    return SimpleNamespace(
        kernels=[each for each, _ in kernels],
        nodes=[frozenset(nodes.split()) for _, nodes in kernels],
    )


GEMM = kernel("gemm", kind="gemm")
NORM = kernel("norm")
PLAIN = side((GEMM, "fc bias"), (NORM, "norm scale"))


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (side((GEMM, "fc bias"), (NORM, "scale norm")), ["same", "same"]),
        (side((GEMM, "fc bias"), (kernel("k", moved=9), "norm scale")), ["same", "changed"]),
        (side((replace(GEMM, dtype="FP8"), "fc bias"), (NORM, "norm")), ["changed", "same"]),
        (side((GEMM, "fc bias")), ["same", "gone"]),
        (side((GEMM, "fc bias"), (NORM, "norm scale"), (NORM, "new")), ["same", "same", "added"]),
        (side((GEMM, "fc bias norm scale")), ["fused differently"]),
        (side((GEMM, "fc"), (NORM, "bias"), (NORM, "norm scale")), ["fused differently", "same"]),
    ],
)
def test_groups_of_kernels_by_their_nodes(other: Any, expected: list[str]) -> None:
    assert [group.status for group in match(PLAIN, other)] == expected


def test_nodes_behind_a_tensor_end_where_others_begin() -> None:
    nodes = [
        oh.make_node("Add", ["x", "y"], ["sum"], name="blocks.0.add"),
        oh.make_node("Cast", ["sum"], ["half"], name="blocks.0.cast"),
        oh.make_node("Mul", ["half", "scale"], ["out"], name="blocks.0.mul"),
    ]
    graph = ExportedGraph.of(oh.make_model(oh.make_graph(nodes, "g", [], [])))
    assert graph.behind(["out"], frozenset(["sum"]), frozenset()) == {
        "blocks.0.mul",
        "blocks.0.cast",
    }
    others = frozenset(["blocks.0.cast"])
    assert graph.behind(["out"], frozenset(), others) == {"blocks.0.mul"}
    assert graph.known("blocks.0.mul/native.add_1/x") == "blocks.0.mul"
    assert graph.known("modulation/blocks.0.add") == "modulation/blocks.0.add"


def test_the_block_of_a_kernel_is_that_of_most_of_its_nodes() -> None:
    assert block_of(["blocks.3.add", "blocks.3.mul", "blocks.4.add"]) == 3
    assert block_of(["blocks.3.add", "blocks.4.add"]) == 4
    assert block_of(["modulation/blocks.11.add"]) == 11
    assert block_of(["head.add", "text_kv.1.mul"]) is None


@pytest.fixture(scope="module")
def fp4(unquantised_bundle: Path, tiny_bundle: Path) -> StaticComparison:
    paths = (unquantised_bundle, tiny_bundle)
    return compare_static(*(Side.of(open_bundle(path)) for path in paths))


@pytest.mark.trt
def test_kernels_are_those_that_inspect_counts(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    kernels = bundle_kernels(bundle)
    report = inspect_bundle(bundle)
    own = [each for each in kernels if each.component == "dit" and each.runs == "step"]
    moved = sum(each.cost.bytes_moved for each in own)
    assert moved == report.components["dit"].per_run.bytes_moved
    assert len(own) == report.components["dit"].per_run.kernels
    assert list(by_block(kernels)) == [0, 1]


@pytest.mark.trt
def test_a_bundle_is_the_same_as_itself(tiny_bundle: Path) -> None:
    own = Side.of(open_bundle(tiny_bundle))
    found = compare_static(own, own)
    assert found.counts.pop("same") > 50
    assert set(found.counts.values()) == {0}
    assert not found.groups


@pytest.mark.trt
def test_what_fp4_changes(fp4: StaticComparison) -> None:
    by_node = {group.nodes[0]: group for group in fp4.groups}
    qkv = by_node["blocks.0.attn1.qkv/MatMul"]
    assert [each.dtype for each in qkv.a] == ["BFloat16"]
    assert [each.dtype for each in qkv.b] == ["FP4E2M1"]
    assert (qkv.status, qkv.block) == ("changed", 0)
    quantiser = by_node["blocks.1._to_copy_5/fp4/quantize"]
    assert (quantiser.status, quantiser.a) == ("added", ())
    attention = by_node["blocks.0.sage_attention3"]
    assert [each.kind for each in attention.b] == ["own", "attention"]
    assert sum(each.kind == "attention" for each in attention.a) == 1
    dit = fp4.components["dit"]
    assert dit.a is not None
    assert dit.b is not None
    assert (dit.a.quantised_linears, dit.b.quantised_linears) == (0, 20)
    assert fp4.components["text_encoder"].a is None


@pytest.mark.trt
def test_what_fusing_changes(tiny_bundle: Path, lifted_bundle: Path) -> None:
    paths = (tiny_bundle, lifted_bundle)
    found = compare_static(*(Side.of(open_bundle(path)) for path in paths))
    gelu = next(group for group in found.groups if "blocks.0.gelu" in group.nodes)
    assert gelu.status == "fused differently"
    assert [each.name for each in gelu.b] == ["GeluQuantize"]
    assert len(gelu.a) == 2
    gemms = [
        each
        for group in found.groups
        if group.component == "dit"
        for each in group.a
        if each.kind == "gemm"
    ]
    assert not gemms  # the GEMMs themselves are the same
    for unfused, fused in found.block_bytes:
        assert unfused is not None
        assert fused is not None
        assert fused < 0.7 * unfused


@pytest.mark.trt
def test_blocks_that_are_alike_are_one_row(fp4: StaticComparison) -> None:
    rows = {row.nodes: row for row in patterns(fp4.groups)}
    assert rows["blocks.*.attn1.qkv/MatMul"].blocks == [0, 1]
    assert rows["blocks.*.attn1.qkv/MatMul"].where == "blocks 0 to 1"
