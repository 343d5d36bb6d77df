"""Layer records read from the builder's log."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastwan.engines.backend import BuiltEngine
from fastwan.engines.layer_json import layer_from_json
from fastwan.engines.layers import TensorRecord, parse_layers
from fastwan.errors import BadInput, VerificationFailed


def tensor(name: str, shape: str, dtype: str) -> str:
    return (
        f"{{ Name: {name}, Dimensions: [{shape}], Strides: [1,1], StrideOrder: [1,0], "
        f"Datatype: {dtype}, Format: (Arbitrary) Format with stride order = [1,0] }}"
    )


GEMM = (
    "Name: a/MatMul_myl0_1, LayerType: gemm, Inputs: [ "
    + ", ".join((tensor("{x, y}", "1,128,256", "FP4E2M1"), tensor("s", "1,1,4,32,4,4", "FP8")))
    + " ], Constants: [ "
    + ", ".join((tensor("w", "1,256,512", "FP4E2M1"), tensor("alpha", "1", "Float")))
    + " ], Outputs: [ "
    + tensor("out [0]", "1,128,512", "BFloat16")
    + "], TacticName: __myelin_CASK_STUB, StreamId: 0, Metadata: "
    "[ONNX Layer: a[0]/MatMul]\x1f[ONNX Layer: conv]__gemm_from_conv1x1"
)
HOST = (
    "Name: shapes, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], "
    "TacticName: , StreamId: 0, Metadata: "
)
TAIL = "\n\nI/O Tensors:\n Name: x, IOMode: Input"


def log(*lines: str) -> list[str]:
    return ["Graph optimised", "Layers:\n" + "\n".join(lines) + TAIL]


def test_a_gemm_with_awkward_names_is_read_whole() -> None:
    (gemm,) = parse_layers(log(GEMM), "dit")
    assert gemm.name == "a/MatMul_myl0_1"
    assert gemm.inputs[0] == TensorRecord("{x, y}", "FP4E2M1", (1, 128, 256))
    assert gemm.outputs == (TensorRecord("out [0]", "BFloat16", (1, 128, 512)),)
    assert gemm.nodes == ("a[0]/MatMul", "conv")
    assert gemm.tactic == "__myelin_CASK_STUB"
    assert [t.name for t in gemm.operands] == ["{x, y}", "w"]
    assert (gemm.kind, gemm.precision) == ("gemm", "FP4E2M1")


def test_a_call_without_tensors_is_the_host() -> None:
    host, gemm = parse_layers(log(HOST, GEMM), "dit")
    assert (host.kind, host.nodes, host.tensors) == ("host", (), ())
    assert gemm.kind == "gemm"


@pytest.mark.parametrize(
    "messages",
    [
        [],
        ["Layers:" + TAIL],
        log(GEMM.replace("LayerType", "Kind")),
        log(GEMM.replace("Dimensions: [1,128,256]", "Dimensions: 1x128x256")),
        log(GEMM.replace("Outputs: [ ", "Outputs: ").replace("], TacticName", ", TacticName")),
        log(GEMM, "something else"),
    ],
    ids=["no log", "empty block", "missing field", "bad tensor", "no list", "foreign line"],
)
def test_what_is_not_understood_is_refused(messages: list[str]) -> None:
    with pytest.raises(VerificationFailed, match="dit"):
        parse_layers(messages, "dit")


@pytest.mark.parametrize(
    ("shape", "read"),
    [
        ("1,128,256", (1, 128, 256)),
        ("1, -1 ,256", (1, -1, 256)),
        ("", ()),
        ("1,,2", None),
        (",", None),
        ("1,", None),
        ("1-2", None),
        ("--1", None),
        ("-2", None),
        ("1 2", None),
        ("2147483648", None),
        ("9" * 400, None),
        ("9" * 5000, None),
        (",".join(["1"] * 17), None),
        ("2147483647,2147483647", None),
    ],
)
def test_dimensions_are_read_strictly(shape: str, read: tuple[int, ...] | None) -> None:
    line = GEMM.replace(
        "Name: out [0], Dimensions: [1,128,512]", f"Name: out, Dimensions: [{shape}]"
    )
    assert line != GEMM
    if read is None:
        with pytest.raises(VerificationFailed, match="cannot be read"):
            parse_layers(log(line), "dit")
        return
    (gemm,) = parse_layers(log(line), "dit")
    assert gemm.outputs[0].shape == read


PIECES = [
    "Name: ", ", LayerType: gemm", ", Inputs: [", "{ Name: x", ", Dimensions: [", "1,,2", "-1", "]",
    ", Datatype: FP8", " }", ", Outputs: []", ", TacticName: t", ", Metadata: ", "[ONNX Layer: a]",
    "\x1f", " [profile 1]", "_myl0_1", "\n", "\n\n", "Layers:", "{", ",", "9" * 5000, "\u0663",
]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=24), st.integers(1, 3))
@settings(max_examples=300, derandomize=True, deadline=None)
def test_no_log_makes_anything_but_the_projects_own_error(parts: list[str], profiles: int) -> None:
    with contextlib.suppress(VerificationFailed):
        parse_layers(["Layers:\n" + "".join(parts)], "dit", profiles)


@given(st.integers(0, len(GEMM)), st.integers(0, 40), st.text(max_size=6) | st.sampled_from(PIECES))
@settings(max_examples=300, derandomize=True, deadline=None)
def test_no_damage_to_a_line_makes_anything_but_it(at: int, cut: int, put: str) -> None:
    with contextlib.suppress(VerificationFailed):
        for record in parse_layers(log(GEMM[:at] + put + GEMM[at + cut :]), "dit"):
            assert record.to_json()


PART = "Name: __mye1_myl{}_0, LayerType: shape_call" + HOST.removeprefix(
    "Name: shapes, LayerType: shape_call"
)
MARKED = GEMM.replace("_myl0_1", " [profile 1]_myl1_1").replace("Name: w,", "Name: w [profile 1],")
INNER = GEMM.replace("a/MatMul_myl0_1", "__myl_Move_myl1_2")


def test_kernels_are_sorted_by_the_profile_that_runs_them() -> None:
    first, gemm, second, marked, inner = parse_layers(
        log(PART.format(0), GEMM, PART.format(1), MARKED, INNER), "dit", 2
    )
    # Neither the host's call nor the last kernel says its profile: their part is known by another.
    found = [record.profile for record in (first, gemm, second, marked, inner)]
    assert found == [0, 0, 1, 1, 1]
    assert (marked.nodes, marked.inputs, marked.constants) == (
        gemm.nodes,
        gemm.inputs,
        gemm.constants,
    )


def test_an_engine_without_records_of_a_profile_is_refused() -> None:
    parse_layers(log(GEMM, MARKED), "dit", 2)
    with pytest.raises(VerificationFailed, match="of every profile"):
        parse_layers(log(GEMM, MARKED), "dit", 3)
    with pytest.raises(VerificationFailed, match="of every profile"):
        parse_layers(log(GEMM), "dit", 2)


def test_records_survive_json() -> None:
    for layer in parse_layers(log(HOST, GEMM, MARKED), "dit", 2):
        assert layer_from_json(json.loads(json.dumps(layer.to_json()))) == layer


def test_a_record_of_a_bundle_without_profiles_is_of_the_first() -> None:
    (gemm,) = parse_layers(log(GEMM), "dit")
    raw = gemm.to_json()
    del raw["profile"]
    assert layer_from_json(raw) == gemm


def test_a_malformed_json_record_is_refused() -> None:
    (gemm,) = parse_layers(log(GEMM), "dit")
    raw = gemm.to_json()
    del raw["nodes"]
    with pytest.raises(BadInput, match="nodes"):
        layer_from_json(raw)


@pytest.mark.parametrize(
    ("dtype", "shape", "dynamic", "size"),
    [
        ("FP4E2M1", (1, 128, 256), 1, 128 * 128),
        ("BFloat16", (1, -1, 256), 100, 100 * 512),
        ("FP8", (1, -1, 4, 32, 4, 4), 100, 2048),  # one tile of 128 rows of block scales
        ("Float", (), 1, 4),
    ],
)
def test_bytes_of_a_tensor(dtype: str, shape: tuple[int, ...], dynamic: int, size: int) -> None:
    assert TensorRecord("t", dtype, shape).bytes(dynamic) == size


def test_bytes_of_an_unknown_dtype_are_not_guessed() -> None:
    with pytest.raises(BadInput, match="Posit"):
        TensorRecord("t", "Posit8", (1,)).bytes()


@pytest.mark.trt
def test_the_builders_own_log_is_read(
    kit: SimpleNamespace, build: Callable[..., BuiltEngine], tmp_path: Path
) -> None:
    built = build(kit.source(kit.graph(), tmp_path))
    gemm = built.layers[-1]
    assert gemm.kind == "gemm"
    assert "a/MatMul" in gemm.nodes
    assert [(t.dtype, t.elements()) for t in gemm.operands] == [
        ("FP4E2M1", kit.M * kit.K),
        ("FP4E2M1", kit.K * kit.N),
    ]
    assert gemm.outputs[0].shape == (1, kit.M, kit.N)
    assert built.layers[0].kind == "memory"


@pytest.mark.parametrize("residual", ["BFloat16", "Half"])
def test_a_residual_like_the_activation_is_no_operand(kit: SimpleNamespace, residual: str) -> None:
    gemm = kit.record(
        "__myl_FcCastAdd_myl0_9",
        inputs=[(residual, (1, -1, 64)), ("Half", (1, -1, 64))],
        constants=[("Half", (64, 64))],
        outputs=[("BFloat16", (1, -1, 64))],
    )
    assert [tensor.dtype for tensor in gemm.operands] == ["Half", "Half"]
    assert gemm.precision == "Half"
