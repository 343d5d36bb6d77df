"""The gate: a linear that loses FP4 is found, in the graph and in the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest

from fastwan.engines.backend import BuiltEngine
from fastwan.engines.coverage import check_coverage, check_onnx_linears
from fastwan.engines.layers import LayerRecord
from fastwan.errors import VerificationFailed
from fastwan.export.recipes.nvfp4 import is_fp4_gemm

FAULTS = {
    "reshape_weight": "Reshape stands between its weight",
    "relu": "Relu stands between its activation",
    "no_quantise": "activation",
    "weight_input": "weight is no initializer",
}
LOST_BY_THE_BUILDER = ["reshape_weight", "relu", "no_quantise"]


def test_the_graph_check_returns_the_size_of_each_weight(kit: SimpleNamespace) -> None:
    assert check_onnx_linears(kit.graph(), [kit.linear("a")]) == {"a/MatMul": kit.N * kit.K}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_graph_that_loses_fp4_is_refused_by_name(kit: SimpleNamespace, fault: str) -> None:
    with pytest.raises(VerificationFailed, match=f"1 targeted linear .*a: .*{FAULTS[fault]}"):
        check_onnx_linears(kit.graph(fault), [kit.linear("a")])


def test_a_linear_that_is_not_targeted_may_be_anything(kit: SimpleNamespace) -> None:
    linear = kit.linear("a").model_copy(update={"format": "bf16"})
    assert check_onnx_linears(kit.graph("no_quantise"), [linear]) == {}
    assert check_coverage([], [linear]).lost == ()


def edit(model: onnx.ModelProto, node: str, **changes: object) -> onnx.ModelProto:
    found = next(n for n in model.graph.node if n.name == node)
    for index, name in changes.get("inputs", {}).items():  # type: ignore[attr-defined]
        found.input[index] = name
    for attribute in found.attribute:
        if attribute.name in changes:
            attribute.i = changes[attribute.name]  # type: ignore[assignment]
    return model


@pytest.mark.parametrize(
    ("node", "changes", "message"),
    [
        ("a/MatMul", {"inputs": {0: "absent"}}, "activation"),
        ("a/weight", {"block_size": 32}, "blocks of 16"),
        ("x/values", {"axis": 1}, "blocks of 16"),
        ("x/values", {"inputs": {1: "a.s"}}, "scale of another"),
        ("a/weight", {"inputs": {1: "a.ws"}}, "no global scale"),
        ("a/scale", {"inputs": {1: "a.ws"}}, "FLOAT8E4M3FN, not FLOAT"),
        ("a/weight", {"inputs": {0: "a.ws"}}, "FLOAT8E4M3FN, not FLOAT4E2M1"),
    ],
)
def test_each_part_of_the_pattern_is_checked(
    kit: SimpleNamespace, node: str, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(VerificationFailed, match=message):
        check_onnx_linears(edit(kit.graph(), node, **changes), [kit.linear("a")])


def quantised_before(
    kit: SimpleNamespace,
    codes: int = onnx.TensorProto.FLOAT4E2M1,
    scales: int = onnx.TensorProto.FLOAT8E4M3FN,
    blocks: int = 16,
) -> onnx.ModelProto:
    """The sound graph, its activation quantised by a kernel before the engine."""
    model: onnx.ModelProto = kit.graph()
    del model.graph.input[:]
    quantise = next(node for node in model.graph.node if node.name == "x/quantize")
    model.graph.node.remove(quantise)
    names = list(quantise.output)
    model.graph.input.extend(
        [
            kit.value(names[0], [1, kit.M, kit.K], codes),
            kit.value(names[1], [1, kit.M, blocks], scales),
        ]
    )
    return model


def test_an_activation_may_come_quantised(kit: SimpleNamespace) -> None:
    assert check_onnx_linears(quantised_before(kit), [kit.linear("a")]) == {
        "a/MatMul": kit.N * kit.K
    }


@pytest.mark.parametrize(
    "fault",
    [
        {"codes": onnx.TensorProto.BFLOAT16},
        {"scales": onnx.TensorProto.FLOAT},
        {"blocks": 8},
    ],
    ids=["no codes", "scales that are not e4m3", "scales of other blocks"],
)
def test_an_activation_that_comes_otherwise_is_refused(
    kit: SimpleNamespace, fault: dict[str, int]
) -> None:
    with pytest.raises(VerificationFailed, match="no input of FP4 codes with a scale for 16"):
        check_onnx_linears(quantised_before(kit, **fault), [kit.linear("a")])


def test_a_renamed_node_is_missing(kit: SimpleNamespace) -> None:
    with pytest.raises(VerificationFailed, match="no single MatMul node b/MatMul"):
        check_onnx_linears(kit.graph(), [kit.linear("b")])


class TestRecords:
    """Coverage by hand-written records."""

    def test_every_profile_has_to_keep_fp4(
        self, kit: SimpleNamespace, fp4_record: Callable[..., LayerRecord]
    ) -> None:
        first, second = fp4_record(), replace(fp4_record(), profile=1)
        assert check_coverage([first, second], [kit.linear("a")]).lost == ()
        bf16 = replace(
            second,
            inputs=tuple(replace(each, dtype="BFloat16") for each in second.inputs[:1]),
            constants=tuple(replace(each, dtype="BFloat16") for each in second.constants[:1]),
        )
        ((linear, reason),) = check_coverage([first, bf16], [kit.linear("a")]).lost
        assert linear.name == "a"
        assert reason.startswith("BFloat16 GEMM")
        assert reason.endswith("in profile 1")
        other = replace(second, nodes=())
        ((_, reason),) = check_coverage([first, other], [kit.linear("a")]).lost
        assert reason == "no GEMM names it in profile 1"

    def test_an_fp4_gemm_covers_its_node(
        self, kit: SimpleNamespace, fp4_record: Callable[..., LayerRecord]
    ) -> None:
        linear = kit.linear("a")
        found = check_coverage([fp4_record()], [linear], {"a/MatMul": kit.N * kit.K})
        assert (found.covered, found.lost) == ((linear,), ())

    def test_one_gemm_covers_two_merged_linears(
        self, kit: SimpleNamespace, fp4_record: Callable[..., LayerRecord]
    ) -> None:
        linears = [kit.linear("a"), kit.linear("b")]
        sizes = {"a/MatMul": kit.N * kit.K, "b/MatMul": kit.N * kit.K}
        merged = fp4_record(("a/MatMul", "b/MatMul"), n=2 * kit.N)
        assert check_coverage([merged], linears, sizes).covered == tuple(linears)

    def test_a_gemm_that_only_names_a_neighbour_does_not_cover_it(
        self, kit: SimpleNamespace, fp4_record: Callable[..., LayerRecord]
    ) -> None:
        linears = [kit.linear("a"), kit.linear("b")]
        sizes = {"a/MatMul": kit.N * kit.K, "b/MatMul": kit.N * kit.K}
        names_both = fp4_record(("a/MatMul", "b/MatMul"))
        found = check_coverage([names_both], linears, sizes)
        assert found.covered == ()
        assert f"{kit.N * kit.K} of {2 * kit.N * kit.K} FP4 weights" in found.lost[0][1]

    def test_a_bf16_gemm_of_the_same_node_is_a_loss(
        self, kit: SimpleNamespace, fp4_record: Callable[..., LayerRecord]
    ) -> None:
        linears = [kit.linear("a"), kit.linear("b")]
        bf16 = kit.record(
            "b/MatMul_myl0_2",
            inputs=[("BFloat16", (1, kit.M, kit.K))],
            constants=[("BFloat16", (kit.K, kit.N))],
            outputs=[("BFloat16", (1, kit.M, kit.N))],
            nodes=("b/MatMul",),
        )
        found = check_coverage([fp4_record(("a/MatMul", "b/MatMul")), bf16], linears)
        assert [linear.name for linear in found.covered] == ["a"]
        with pytest.raises(VerificationFailed, match="b: BFloat16 GEMM b/MatMul_myl0_2"):
            found.require("dit")

    def test_two_halves_of_a_linear_cover_it_together(
        self, kit: SimpleNamespace, fp4_record: Callable[..., LayerRecord]
    ) -> None:
        halves = [fp4_record(n=kit.N // 2), fp4_record(n=kit.N // 2)]
        sizes = {"a/MatMul": kit.N * kit.K}
        assert check_coverage(halves, [kit.linear("a")], sizes).lost == ()
        assert len(check_coverage(halves[:1], [kit.linear("a")], sizes).lost) == 1

    @pytest.mark.parametrize(
        ("kind", "inputs", "constants"),
        [
            ("kgen", [("BFloat16", (1, 128, 256))], []),
            ("kgen", [("FP4E2M1", (1, 128, 256))], [("FP4E2M1", (1, 256, 512))]),
            ("gemm", [("BFloat16", (1, 128, 256))], [("FP4E2M1", (1, 256, 512))]),
            ("gemm", [("FP4E2M1", (1, 128, 256))], [("BFloat16", (1, 256, 512))]),
        ],
        ids=["quantise", "unpack", "weight only", "activation only"],
    )
    def test_touching_fp4_is_not_multiplying_it(
        self,
        kit: SimpleNamespace,
        kind: str,
        inputs: list[tuple[str, tuple[int, ...]]],
        constants: list[tuple[str, tuple[int, ...]]],
    ) -> None:
        kernel = kit.record(
            "kernel", kind, inputs=inputs, constants=constants,
            outputs=[("FP4E2M1", (1, 128, 512))], nodes=("a/MatMul",),
        )  # fmt: skip
        assert not is_fp4_gemm(kernel)
        assert len(check_coverage([kernel], [kit.linear("a")]).lost) == 1


@pytest.mark.trt
class TestRealBuilder:
    """The same graphs through TensorRT-RTX."""

    def test_the_sound_graph_is_covered(
        self, kit: SimpleNamespace, build: Callable[..., BuiltEngine], tmp_path: Path
    ) -> None:
        source = kit.source(kit.graph(), tmp_path)
        found = check_coverage(build(source).layers, source.linears, {"a/MatMul": kit.N * kit.K})
        found.require("dit")
        assert found.covered == source.linears

    @pytest.mark.parametrize("fault", LOST_BY_THE_BUILDER)
    def test_an_engine_that_lost_fp4_is_refused(
        self, kit: SimpleNamespace, build: Callable[..., BuiltEngine], tmp_path: Path, fault: str
    ) -> None:
        source = kit.source(kit.graph(fault), tmp_path)
        found = check_coverage(build(source).layers, source.linears)
        with pytest.raises(VerificationFailed, match="a: BFloat16 GEMM") as caught:
            found.require("dit")
        assert caught.value.exit_code == 4

    def test_merged_gemms_are_matched_by_name(
        self, kit: SimpleNamespace, build: Callable[..., BuiltEngine], tmp_path: Path
    ) -> None:
        graph = kit.GraphBuilder()
        graph.inputs.append(kit.value("x", [1, kit.M, kit.K]))
        graph.quantise("x", "xq")
        linears = tuple(kit.linear(name) for name in ("k", "v"))
        for name in ("k", "v"):
            graph.linear(name, "xq", f"y{name}", kit.N, kit.K)
            graph.outputs.append(kit.value(f"y{name}", [1, kit.M, kit.N]))
        model = graph.model()
        sizes = check_onnx_linears(model, linears)
        built = build(kit.source(model, tmp_path, linears=linears))
        assert check_coverage(built.layers, linears, sizes).covered == linears
