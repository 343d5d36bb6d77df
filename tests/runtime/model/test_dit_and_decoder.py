"""DiT and decoder, written against the executor protocol alone, and on real latents."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from fastwan.bundle import open_bundle
from fastwan.config import VideoShape
from fastwan.errors import BadInput
from fastwan.manifest import TensorSpec
from fastwan.runtime.cpu.executor import cpu_executor
from fastwan.runtime.model.decode import Decoder
from fastwan.runtime.model.dit import DiT


class FakeExecutor:
    """Specs and a recording; shows that components need no more of an executor."""

    def __init__(self, inputs: dict[str, tuple[int, ...]], outputs: dict[str, tuple[int, ...]]):
        self.inputs = {n: TensorSpec(name=n, dtype="float32", shape=s) for n, s in inputs.items()}
        self.outputs = {n: TensorSpec(name=n, dtype="float32", shape=s) for n, s in outputs.items()}
        self.fills = 0
        self.reads: list[dict[str, int]] = []
        self.results: list[dict[str, int]] = []
        self.made: list[set[str]] = []
        self.kept: list[dict[str, np.ndarray]] = []  # an id is only unique while its array lives

    def full(self, name: str, value: float = 0.0) -> np.ndarray:
        self.fills += 1
        shape = (self.inputs | self.outputs)[name].shape
        return np.full(shape, value, np.float32)

    def run(
        self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        self.reads.append({name: id(value) for name, value in inputs.items()})
        given = outputs or {}
        self.made.append({name for name in self.outputs if name not in given})
        results = {
            name: given[name] if name in given else np.zeros(spec.shape, np.float32)
            for name, spec in self.outputs.items()
        }
        self.kept.append(results)
        self.results.append({name: id(value) for name, value in results.items()})
        return results


def time_tables() -> FakeExecutor:
    return FakeExecutor({"timestep": (1,)}, {"temb": (1, 8), "timestep_proj": (1, 6, 8)})


def text_kv() -> FakeExecutor:
    kv = {"blocks.0.attn2.k": (1, 6, 8), "blocks.0.attn2.v": (1, 6, 8)}
    return FakeExecutor({"encoder_hidden_states": (1, 6, 8)}, kv)


def dit(**more: tuple[int, ...]) -> FakeExecutor:
    inputs = {"latents": (1, 16, 3, 2, 4), "temb": (1, 8), "timestep_proj": (1, 6, 8), **more}
    return FakeExecutor(
        {**inputs, "blocks.0.attn2.k": (1, 6, 8), "blocks.0.attn2.v": (1, 6, 8)},
        {"velocity": (1, 16, 3, 2, 4)},
    )


@pytest.mark.parametrize("asked_before", [True, False])
def test_text_keys_are_computed_once_a_prompt_and_tables_once_a_timestep(
    asked_before: bool,
) -> None:
    time, kv, net = time_tables(), text_kv(), dit()
    model = DiT(time, kv, net)
    if asked_before:
        model.tables(999)
        model.tables(857)
        assert len(time.reads) == 2
    context = model.prepare(np.zeros((1, 6, 8), np.float32))
    latents = np.zeros((1, 16, 3, 2, 4), np.float32)
    for _ in range(2):
        for timestep in (999, 857):
            model.velocity(latents, timestep, context)
    assert (len(kv.reads), len(net.reads), len(time.reads), time.fills) == (1, 4, 2, 2)
    # Each step reads the tables of its own timestep.
    first, second = time.results
    for read, made in zip(net.reads, (first, second, first, second), strict=True):
        assert {name: read[name] for name in made} == made


def test_graphs_that_do_not_fit_together_are_refused() -> None:
    DiT(time_tables(), text_kv(), dit())
    with pytest.raises(BadInput, match=r"nothing provides blocks\.1\.attn2\.k"):
        DiT(time_tables(), text_kv(), dit(**{"blocks.1.attn2.k": (1, 6, 8)}))
    # A transformer that still makes its tables itself, and tables that nobody reads.
    with pytest.raises(BadInput, match="nothing provides timestep"):
        DiT(time_tables(), text_kv(), dit(timestep=(1,)))
    for name in ("blocks.0.attn2.v", "timestep_proj"):
        net = dit()
        del net.inputs[name]
        with pytest.raises(BadInput, match=f"graph lacks {re.escape(name)}"):
            DiT(time_tables(), text_kv(), net)


def step(memory_out: tuple[int, ...] = (1, 5)) -> FakeExecutor:
    return FakeExecutor(
        {"latent": (1, 16, 2, 4), "memory_0": (1, 5)},
        {"frames": (4, 16, 32, 3), "memory_0_out": memory_out},
    )


def test_two_sets_of_memories_and_frames_take_turns_and_nothing_else_is_made() -> None:
    executor = step()
    decoder = Decoder(executor)
    list(decoder.frames(np.zeros((1, 16, 5, 2, 4), np.float32)))
    # The first run makes the second set, the first two make the two sets of frames.
    assert executor.fills == 1
    assert [sorted(made) for made in executor.made] == [
        ["frames", "memory_0_out"],
        ["frames"],
        [],
        [],
        [],
    ]
    reads = [call["memory_0"] for call in executor.reads]
    writes = [call["memory_0_out"] for call in executor.results]
    frames = [call["frames"] for call in executor.results]
    assert reads == [reads[0], writes[0], reads[0], writes[0], reads[0]]
    assert writes == [writes[0], reads[0], writes[0], reads[0], writes[0]]
    assert frames == [frames[0], frames[1], frames[0], frames[1], frames[0]]
    assert reads[0] != writes[0]
    assert frames[0] != frames[1]


def test_a_memory_that_changes_its_shape_is_refused() -> None:
    Decoder(step())
    with pytest.raises(BadInput, match="memory_0 and memory_0_out differ"):
        Decoder(step((1, 6)))


def test_decoding_is_in_order_and_drops_the_first_three_frames(make_bundle: Callable) -> None:
    bundle = make_bundle()
    decoder = Decoder(cpu_executor(open_bundle(bundle.root), "decoder"))
    latents = np.random.default_rng(0).standard_normal((1, 16, 3, 2, 4)).astype(np.float16)
    check_decode(decoder, latents)


def test_real_latents_decode_in_order(make_bundle: Callable, wan_latents: np.ndarray) -> None:
    shape = VideoShape(height=320, width=512, num_frames=61)
    bundle = make_bundle(latents=wan_latents.shape, shape=shape)
    decoder = Decoder(cpu_executor(open_bundle(bundle.root), "decoder"))
    check_decode(decoder, wan_latents.astype(np.float16))


def check_decode(decoder: Decoder, latents: np.ndarray) -> None:
    """Against the fake decoder's formula, evaluated at once."""
    frames = [frame.copy() for frame in decoder.frames(latents)]
    count = latents.shape[2]
    assert len(frames) == decoder.num_frames(count) == 4 * count - 3
    assert frames[0].shape == decoder.frame_shape
    assert frames[0].dtype == np.uint8
    past = np.concatenate([np.zeros_like(latents[:, :, :2]), latents], 2).astype(np.float32)
    growth = np.arange(1, 5, dtype=np.float32) * np.float32(0.1)
    expected = []
    for t in range(count):
        before, previous, now = (past[:, :3, t + i] for i in range(3))
        memory = previous * np.float32(0.2) + before * np.float32(0.1)
        for factor in growth:
            pixels = np.clip(now * factor + memory + np.float32(0.5), 0, 1) * np.float32(255)
            expected.append(pixels[0].astype(np.uint8).transpose(1, 2, 0))
    np.testing.assert_array_equal([frame[::8, ::8] for frame in frames], expected[3:])


@pytest.mark.parametrize("fault", ["none", "fewer", "rank", "ghost"])
def test_profiles_that_do_not_fit_their_inputs_are_refused(bundle: Any, fault: str) -> None:
    path = bundle.root / "manifest.json"
    raw = json.loads(path.read_text())
    profiles = raw["engines"]["text_encoder"]["profiles"]
    changes: dict[str, Any] = {
        "none": {"embeddings": []},
        "fewer": {"embeddings": profiles["embeddings"], "other": profiles["embeddings"][:1]},
        "rank": {"embeddings": [[shape[1:] for shape in p] for p in profiles["embeddings"]]},
        "ghost": {"ghost": profiles["embeddings"]},
    }
    raw["engines"]["text_encoder"]["profiles"] = changes[fault]
    path.write_text(json.dumps(raw))
    with pytest.raises(BadInput, match=r"do not fit the inputs in 'engines\.text_encoder'"):
        open_bundle(bundle.root)


def test_a_bundle_from_before_there_were_several_profiles_says_what_to_do(bundle: Any) -> None:
    path = bundle.root / "manifest.json"
    raw = json.loads(path.read_text())
    engine = raw["engines"]["text_encoder"]
    assert open_bundle(bundle.root).manifest.engines["text_encoder"].profiles
    engine["profiles"] = {name: shapes[-1] for name, shapes in engine["profiles"].items()}
    path.write_text(json.dumps(raw))
    with pytest.raises(BadInput, match=r"text_encoder\.profiles.*build the bundle again"):
        open_bundle(bundle.root)
