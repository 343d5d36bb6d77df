"""Components that are several engines in a row, as the full-size bundle has them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fastwan.bundle import open_bundle
from fastwan.config import SAMPLERS
from fastwan.errors import BadInput
from fastwan.files import sha256_file
from fastwan.manifest import MANIFEST, Engine, FileRecord, Graph, Manifest, TensorSpec
from fastwan.quality.races import find_races
from fastwan.runtime.device.null import Call, NullDevice, NullEngine
from fastwan.runtime.device.session import Session
from fastwan.runtime.model.samplers import schedule_of
from fastwan.runtime.pipeline import FastWanPipeline
from fastwan.runtime.recording.machine import DeviceError
from fastwan.runtime.recording.memory_plan import plan
from fastwan.runtime.recording.operations import RunEngine
from fastwan.runtime.recording.record import Recording, record

LONGEST, WIDTH = 6, 8
BUCKETS = ((1, 3, 3), (4, 6, 6))
FLOAT, BF16 = TensorProto.FLOAT, TensorProto.BFLOAT16
LATENTS = (1, 16, 3, 2, 4)
KV = [("blocks.0.attn2.k", BF16, [1, LONGEST, WIDTH]), ("blocks.0.attn2.v", BF16, [1, LONGEST, 8])]
Value = tuple[str, int, Sequence[int | str]]
SHARED: Value = ("rope_cos.shared", FLOAT, [1])
SCALED: Value = ("scaled", FLOAT, LATENTS)
SHIFT: Value = ("shift", FLOAT, [1])
EMBEDDINGS: Value = ("embeddings", BF16, [1, "length", WIDTH])
HIDDEN_STATES: Value = ("hidden_states", BF16, [1, "length", WIDTH])
HIDDEN: Value = ("encoder.block.0.out", FLOAT, [1, "length", WIDTH])
SCORES: Value = ("scores", FLOAT, [2, "length", "length"])


def cast(source: str, target: str, dtype: int = FLOAT) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], to=dtype)


def model(
    nodes: list[onnx.NodeProto], inputs: list[Value], outputs: list[Value], **constants: np.ndarray
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(*each) for each in inputs],
        [helper.make_tensor_value_info(*each) for each in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(made)
    return made


def text_pieces() -> dict[str, onnx.ModelProto]:
    """Two pieces and the whole of them; a tensor between them grows with the length squared."""
    weight = np.random.default_rng(3).standard_normal((WIDTH, WIDTH)).astype(np.float32)
    first = [
        cast("embeddings", "x"),
        helper.make_node("MatMul", ["x", "w"], [HIDDEN[0]]),
        helper.make_node("Transpose", [HIDDEN[0]], ["t"], perm=[0, 2, 1]),
        helper.make_node("MatMul", [HIDDEN[0], "t"], ["one"]),
        helper.make_node("Neg", ["one"], ["other"]),
        helper.make_node("Concat", ["one", "other"], ["scores"], axis=0),
    ]
    second = [
        helper.make_node("Softmax", ["scores"], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", HIDDEN[0]], ["heads"]),
        helper.make_node("ReduceSum", ["heads", "zero"], ["mixed"], keepdims=1),
        cast("mixed", "hidden_states", BF16),
    ]
    zero = np.array([0], np.int64)
    return {
        "text_encoder_00": model(first, [EMBEDDINGS], [HIDDEN, SCORES], w=weight),
        "text_encoder_01": model(second, [HIDDEN, SCORES], [HIDDEN_STATES], zero=zero),
        "text_encoder": model(first + second, [EMBEDDINGS], [HIDDEN_STATES], w=weight, zero=zero),
    }


def dit_pieces(bundle: Any) -> dict[str, onnx.ModelProto]:
    """The fake transformer in three: the second hands nothing of the first's on to the third."""
    whole = onnx.load(bundle.onnx / "dit.cpu.onnx")
    nodes = {node.output[0]: node for node in whole.graph.node}
    constants = {each.name: numpy_helper.to_array(each) for each in whole.graph.initializer}
    for node in nodes.values():
        node.input[:] = ["rope_cos.shared" if n == "thousand" else n for n in node.input]
    share = helper.make_node("Reshape", ["thousand", "one"], ["rope_cos.shared"])
    middle = [nodes[n] for n in ("k", "v", "kv", "mean", "time", "shift")]
    return {
        "dit_00": model(
            [share, nodes["x"], nodes["scaled"]],
            [("latents", BF16, LATENTS)],
            [SCALED, SHARED],
            one=np.array([1], np.int64),
            **constants,
        ),
        "dit_01": model(middle, [("temb", FLOAT, [1]), *KV, SHARED], [SHIFT]),
        "dit_02": model(
            [nodes["sum"], nodes["velocity"]], [SCALED, SHIFT], [("velocity", BF16, LATENTS)]
        ),
    }


def engine(name: str, graph: onnx.GraphProto, file: str) -> Engine:
    def specs(values: Sequence[onnx.ValueInfoProto]) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(
                name=value.name,
                dtype=helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
                # TensorRT may give each axis a name of its own, though all count tokens.
                shape=tuple(
                    size.dim_value or f"{value.name}_{axis}"
                    for axis, size in enumerate(value.type.tensor_type.shape.dim)
                ),
            )
            for value in values
        )

    text = name.startswith("text")
    inputs = specs(graph.input)
    profiles = {
        spec.name: tuple(
            tuple(
                tuple(size if isinstance(size, int) else length for size in spec.shape)
                for length in bounds
            )
            for bounds in BUCKETS
        )
        for spec in inputs
    }
    return Engine(
        file=file,
        component="text_encoder" if text else "dit",
        inputs=inputs,
        outputs=specs(graph.output),
        scratch_bytes=200,
        runs="prompt" if text else "step",
        profiles=profiles if text else {},
    )


@pytest.fixture
def pieces(bundle: Any) -> Manifest:
    """The fake bundle with two engines for the text encoder and three for the transformer."""
    manifest = open_bundle(bundle.root).manifest
    models = {**text_pieces(), **dit_pieces(bundle)}
    files, graphs = dict(manifest.files), dict(manifest.onnx.graphs)
    made = {}
    for name, each in models.items():
        path = bundle.onnx / f"{name}.cpu.onnx"
        onnx.save(each, path)
        file = f"onnx/{path.name}"
        files[file] = FileRecord(sha256=sha256_file(path), bytes=path.stat().st_size)
        graphs[name] = Graph(file=path.name, cpu_file=path.name, data=(), inputs=(), outputs=())
        if name != "text_encoder":
            made[name] = engine(name, each.graph, file)
    kept = {n: manifest.engines[n] for n in ("time_tables", "text_kv", "decoder")}
    decoder = kept.pop("decoder")
    text = {n: e for n, e in made.items() if n.startswith("text")}
    dit = {n: e for n, e in made.items() if n.startswith("dit")}
    changed = manifest.model_copy(
        update={
            "attention": "native",
            "engines": {**text, **kept, **dit, "decoder": decoder},
            "files": files,
            "onnx": manifest.onnx.model_copy(update={"graphs": graphs}),
        }
    )
    (bundle.root / MANIFEST).write_text(changed.model_dump_json(), encoding="utf-8")
    return changed


def with_engines(manifest: Manifest, **changes: Engine) -> Manifest:
    return manifest.model_copy(update={"engines": {**manifest.engines, **changes}})


def engines_of(recording: Recording, stage: str) -> list[RunEngine]:
    (found,) = (each for each in recording.stages if each.name == stage)
    return [operation for operation in found.operations if isinstance(operation, RunEngine)]


def test_pieces_run_in_the_order_of_the_manifest(pieces: Manifest) -> None:
    recording = record(pieces, schedule_of(SAMPLERS["unipc"]))
    text = ["text_encoder_00", "text_encoder_01"]
    assert [run.engine for run in engines_of(recording, "text")] == text
    for step in range(3):
        runs = engines_of(recording, f"step_{step}")
        assert [run.engine for run in runs] == ["dit_00", "dit_01", "dit_02"]
        first, second, third = runs
        assert second.inputs["rope_cos.shared"] is first.outputs["rope_cos.shared"]
        assert third.inputs["scaled"] is first.outputs["scaled"]
    # To the schedule a component is one call, whatever it is cut into.
    assert [recording.calls.count(name) for name in ("text_encoder", "dit")] == [1, 3]


def test_pieces_make_what_the_whole_makes_on_the_cpu(
    bundle: Any, pieces: Manifest, open_session: Callable[..., Session], host_device: Any
) -> None:
    session = open_session(host_device)
    pipeline = FastWanPipeline.from_bundle(bundle.root, "cpu")
    encoder = pipeline.components.text_encoder
    session.load()
    for prompt in ("a", "red fox runs a", "red fox"):
        rows = encoder._table.gather(encoder.token_ids(prompt))
        hidden = encoder.encode(prompt)[:, : rows.shape[1]]
        np.testing.assert_array_equal(session.encode(rows), hidden)
    session.prepare(pipeline.embed("red fox"))
    noise = np.random.default_rng(5).standard_normal(LATENTS).astype(np.float32)
    expected = pipeline("red fox", latents=noise, output_type="uint8").frames[0]
    np.testing.assert_array_equal(session.video([noise]), expected)
    assert find_races(host_device.calls) == []


@pytest.mark.parametrize("length", [1, 3, LONGEST])
def test_a_run_binds_shapes_of_its_own_length_in_buffers_for_the_longest(
    pieces: Manifest, open_session: Callable[..., Session], length: int
) -> None:
    device = NullDevice()
    session = open_session(device, manifest=pieces)
    session.load()
    begin = len(device.calls)
    session.encode(np.zeros((1, length, WIDTH), np.float32))
    calls: list[Call] = device.calls[begin:]
    first, second = (call for call in calls if call.kind == "engine")
    assert (first.name, second.name) == ("text_encoder_00", "text_encoder_01")
    assert second.reads == first.writes[:2]
    sizes = [end - start for start, end in (*first.reads, *second.reads, second.writes[0])]
    row = length * WIDTH
    assert sizes == [2 * row, 4 * row, 4 * 2 * length * length, 2 * row]
    assert not {"allocate", "free"} & {call.kind for call in calls}
    assert find_races(device.calls) == []
    buffers = {buffer.name: buffer.size for buffer in plan(session.recording).offsets}
    assert buffers[HIDDEN[0]] == 4 * LONGEST * WIDTH
    assert buffers["scores"] == 4 * 2 * LONGEST * LONGEST


def test_the_longest_prompt_is_what_every_piece_takes(
    pieces: Manifest, open_session: Callable[..., Session]
) -> None:
    second = pieces.engines["text_encoder_01"]
    scores = tuple(tuple((2, n, n) for n in bounds) for bounds in ((1, 3, 3), (4, 5, 5)))
    shorter = {**second.profiles, "scores": scores}
    changed = second.model_copy(update={"profiles": shorter})
    rows = np.zeros((1, LONGEST, WIDTH), np.float32)
    assert open_session(NullDevice(), manifest=pieces).encode(rows).shape == rows.shape
    session = open_session(NullDevice(), manifest=with_engines(pieces, text_encoder_01=changed))
    with pytest.raises(BadInput, match="6 tokens, the engine takes 5"):
        session.encode(rows)


@pytest.mark.parametrize(("length", "profile"), [(1, 0), (3, 0), (4, 1), (LONGEST, 1)])
def test_a_prompt_runs_in_the_smallest_profile_that_takes_it(
    pieces: Manifest, length: int, profile: int
) -> None:
    text = record(pieces, schedule_of(SAMPLERS["unipc"])).text
    assert text is not None
    (stage,) = text.stages(length)
    runs = [each for each in stage.operations if isinstance(each, RunEngine)]
    assert [run.profile for run in runs] == [profile, profile]
    assert {run.inputs[name].shape[1] for run in runs for name in run.inputs} == {length}


def test_engines_of_fixed_shapes_have_one_profile(pieces: Manifest) -> None:
    recording = record(pieces, schedule_of(SAMPLERS["unipc"]))
    runs = [run for step in range(3) for run in engines_of(recording, f"step_{step}")]
    assert {run.profile for run in runs} == {0}


def test_every_profile_is_run_before_the_first_prompt(
    pieces: Manifest, open_session: Callable[..., Session]
) -> None:
    device = NullDevice()
    session = open_session(device, manifest=pieces)
    session.load()
    rows = [
        (end - begin) // (2 * WIDTH)
        for call in device.calls
        if call.name == "text_encoder_00"
        for begin, end in call.reads
    ]
    assert sorted(rows) == [3, LONGEST]
    assert find_races(device.calls) == []


def test_the_null_device_refuses_a_shape_outside_the_profile(pieces: Manifest) -> None:
    name = "text_encoder_00"
    engine = NullEngine(NullDevice(), name, pieces.engines[name])
    specs = (*pieces.engines[name].inputs, *pieces.engines[name].outputs)
    bindings = {
        spec.name: (512, tuple(4 if isinstance(size, str) else size for size in spec.shape))
        for spec in specs
    }
    engine.enqueue(bindings, 4096, 200, 1, 1)
    with pytest.raises(DeviceError, match=r"embeddings has shape \(1, 4, 8\), profile 0 takes"):
        engine.enqueue(bindings, 4096, 200, 1, 0)


def test_a_length_between_the_profiles_is_refused(pieces: Manifest) -> None:
    second = pieces.engines["text_encoder_01"]
    gap = {
        name: (tuple(tuple(2 if n == 3 else n for n in s) for s in short), long)
        for name, (short, long) in second.profiles.items()
    }
    changed = with_engines(pieces, text_encoder_01=second.model_copy(update={"profiles": gap}))
    text = record(changed, schedule_of(SAMPLERS["unipc"])).text
    assert text is not None
    text.stages(2)
    with pytest.raises(BadInput, match="text_encoder_01 has no profile for"):
        text.stages(3)


@pytest.mark.parametrize(
    ("piece", "value"),
    [("text_encoder_01", "scores"), ("dit_01", "rope_cos.shared"), ("dit_02", "shift")],
)
def test_a_value_that_nobody_makes_is_named(pieces: Manifest, piece: str, value: str) -> None:
    record(pieces, schedule_of(SAMPLERS["unipc"]))
    reads = pieces.engines[piece]
    inputs = tuple(
        spec.model_copy(update={"name": "ghost"}) if spec.name == value else spec
        for spec in reads.inputs
    )
    profiles = {"ghost" if n == value else n: shapes for n, shapes in reads.profiles.items()}
    changed = reads.model_copy(update={"inputs": inputs, "profiles": profiles})
    with pytest.raises(BadInput, match="nothing provides ghost"):
        record(with_engines(pieces, **{piece: changed}), schedule_of(SAMPLERS["unipc"]))


@pytest.mark.parametrize(
    ("component", "missing"), [("text_encoder", r"encoder\.block\.0\.out, scores"), ("dit", "sh")]
)
def test_a_value_that_is_made_too_late_is_named(
    pieces: Manifest, component: str, missing: str
) -> None:
    record(pieces, schedule_of(SAMPLERS["unipc"]))
    reverse = dict(reversed(pieces.engines.items()))
    apart = ("time_tables", "text_kv")
    moved = {n: e for n, e in reverse.items() if e.component == component and n not in apart}
    kept = {n: e for n, e in pieces.engines.items() if n not in moved}
    with pytest.raises(BadInput, match=f"nothing provides .*{missing}"):
        record(
            pieces.model_copy(update={"engines": {**kept, **moved}}), schedule_of(SAMPLERS["unipc"])
        )


def test_pieces_that_differ_in_dtype_are_refused(pieces: Manifest) -> None:
    record(pieces, schedule_of(SAMPLERS["unipc"]))
    second = pieces.engines["text_encoder_01"]
    hidden, scores = second.inputs
    inputs = (hidden.model_copy(update={"dtype": "bfloat16"}), scores)
    changed = second.model_copy(update={"inputs": inputs})
    with pytest.raises(BadInput, match=r"reads encoder\.block\.0\.out as bfloat16"):
        record(with_engines(pieces, text_encoder_01=changed), schedule_of(SAMPLERS["unipc"]))


def test_a_dynamic_piece_without_a_profile_is_refused(pieces: Manifest) -> None:
    record(pieces, schedule_of(SAMPLERS["unipc"]))
    second = pieces.engines["text_encoder_01"]
    profiles = {HIDDEN[0]: second.profiles[HIDDEN[0]]}
    changed = second.model_copy(update={"profiles": profiles})
    with pytest.raises(BadInput, match="text_encoder_01 has no profile for scores"):
        record(with_engines(pieces, text_encoder_01=changed), schedule_of(SAMPLERS["unipc"]))
