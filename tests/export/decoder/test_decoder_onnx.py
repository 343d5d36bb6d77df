"""The exported streaming decoder: reproducible, valid, and equal to the module."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from fastwan.config import DecoderConfig, VideoShape
from fastwan.errors import BadInput
from fastwan.export import decoder_onnx
from fastwan.export.cache import ExportCache
from fastwan.export.decoder_onnx import export_decoder, load_decoder
from fastwan.export.models.taehv import TAEHVDecoder, to_uint8
from fastwan.manifest import Graph

TINY = DecoderConfig(channels=(24, 16, 8, 8))
SHAPE = VideoShape(32, 48, 9)


class Weights:
    """A TAEHV file in memory, with an encoder tensor that must be ignored."""

    def __init__(self, config: DecoderConfig = TINY) -> None:
        torch.manual_seed(0)
        decoder = TAEHVDecoder(config).requires_grad_(False)
        for parameter in decoder.parameters():
            parameter.mul_(2)
        # Full contrast, so that a comparison of pixels means something.
        last = decoder.decoder[-1]
        frames = decoder(torch.randn(1, 2, config.latent_channels, 4, 6))
        last.weight.mul_(0.3 / frames.std())
        last.bias.fill_(0.5)
        self._state = dict(decoder.state_dict())
        self._state["encoder.0.weight"] = torch.ones(1)

    def names(self) -> list[str]:
        return list(self._state)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._state[name].shape)

    def read(self, name: str) -> torch.Tensor:
        return self._state[name]


@pytest.fixture(scope="module", params=["fp16", "fp32"])
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, Graph]:
    folder = tmp_path_factory.mktemp("decoder")
    dtype: str = request.param
    return dtype, folder, export_decoder(Weights(), TINY, SHAPE, folder, dtype=dtype)


def test_graph_record_matches_the_file(exported: tuple[str, Path, Graph]) -> None:
    _, folder, graph = exported
    files = {p.name for p in folder.iterdir()}
    assert files == {graph.file, graph.cpu_file, *graph.data} == {"decoder.data", "decoder.onnx"}
    model = ir.load(folder / "decoder.onnx")
    for specs, values in ((graph.inputs, model.graph.inputs), (graph.outputs, model.graph.outputs)):
        assert [s.name for s in specs] == [v.name for v in values]
        for spec, value in zip(specs, values, strict=True):
            assert value.dtype is not None
            assert value.shape is not None
            assert value.dtype.numpy() == np.dtype(spec.dtype)
            assert spec.shape == value.shape.numpy()
    last = model.graph.outputs[0].producer()
    assert last is not None
    assert last.op_type == "Cast"
    tensors = {n for n in model.graph.initializers if n.startswith("decoder.")}
    assert tensors == {n for n in Weights().names() if n.startswith("decoder.")}


@pytest.mark.parametrize("exported", ["fp16"], indirect=True)
def test_second_export_is_the_same_bytes(exported: tuple[str, Path, Graph], tmp_path: Path) -> None:
    dtype, folder, graph = exported
    assert export_decoder(Weights(), TINY, SHAPE, tmp_path, dtype=dtype) == graph
    for file in (graph.file, *graph.data):
        assert (tmp_path / file).read_bytes() == (folder / file).read_bytes()
    content = (tmp_path / graph.file).read_bytes()
    for trace in (str(tmp_path), str(Path(__file__).parent), "site-packages", ".py"):
        assert trace.encode() not in content


def _run(path: Path, graph: Graph, latents: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    memories = [np.zeros(spec.shape, spec.dtype) for spec in graph.inputs[1:]]
    frames = []
    for latent in latents:
        feed = dict(zip((s.name for s in graph.inputs[1:]), memories, strict=True))
        out = session.run(None, {"latent": latent[None].astype(graph.inputs[0].dtype), **feed})
        frames.append(out[0])
        memories = out[1:]
    return np.concatenate(frames), memories


def test_onnx_runtime_equals_the_module(exported: tuple[str, Path, Graph]) -> None:
    dtype, folder, graph = exported
    latents = np.random.default_rng(0).standard_normal((3, 16, 4, 6)).astype(np.float32)
    frames, memories = _run(folder / graph.file, graph, latents)
    again, _ = _run(folder / graph.file, graph, latents)
    assert np.array_equal(frames, again)
    decoder = load_decoder(Weights(), TINY)
    expected = to_uint8(decoder(torch.from_numpy(latents)[None])[0]).numpy()
    assert frames.shape == expected.shape == (12, 32, 48, 3)
    assert expected.std() > 40
    differ = np.abs(frames.astype(int) - expected)
    # A value next to a whole number may truncate to its neighbour.
    assert differ.max() <= (1 if dtype == "fp32" else 3)
    assert (differ > 0).mean() < (1e-3 if dtype == "fp32" else 0.3)
    state = decoder.zero_memories(4, 6)
    for latent in torch.from_numpy(latents):
        _, state = decoder.step(latent[None, None], state)
    for mine, theirs in zip(memories, state, strict=True):
        error = np.linalg.norm(mine - theirs.numpy()) / theirs.norm().item()
        assert error < (1e-5 if dtype == "fp32" else 3e-3)


def test_unknown_dtype_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="fp8"):
        export_decoder(Weights(), TINY, SHAPE, tmp_path, dtype="fp8")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.trt
@pytest.mark.parametrize("exported", ["fp16"], indirect=True)
@pytest.mark.parametrize("contiguous", [True, False], ids=["nchw", "hwc8"])
def test_tensorrt_rtx_builds_it(exported: tuple[str, Path, Graph], contiguous: bool) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    _, folder, graph = exported
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    assert parser.parse_from_file(str(folder / graph.file)), parser.get_error(0).desc()
    assert network.get_output(0).dtype == trt.uint8
    if not contiguous:
        for index in range(1, network.num_inputs):
            for tensor in (network.get_input(index), network.get_output(index)):
                tensor.allowed_formats = 1 << int(trt.TensorFormat.HWC8)
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM120, 0)
    assert builder.build_serialized_network(network, config) is not None


def test_a_finished_decoder_comes_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, weights = ExportCache(tmp_path / "cache"), Weights()
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    made = export_decoder(weights, TINY, SHAPE, first, cache=cache)

    def trace(*_: object, **__: object) -> None:
        raise RuntimeError("traced again")

    monkeypatch.setattr(decoder_onnx, "trace", trace)
    assert export_decoder(weights, TINY, SHAPE, second, cache=cache) == made
    for file in (made.file, *made.data):
        assert (first / file).read_bytes() == (second / file).read_bytes()
    weights.read("decoder.1.weight").add_(1)
    with pytest.raises(RuntimeError, match="traced again"):
        export_decoder(weights, TINY, SHAPE, second, cache=cache)
