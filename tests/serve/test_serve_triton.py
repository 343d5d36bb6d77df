"""A model repository of Triton: its config, and its model against a stand-in of the backend."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fastwan.config import VideoShape
from fastwan.errors import BadInput
from fastwan.runtime.pipeline import FastWanPipeline
from fastwan.serve.triton.config import config_text
from fastwan.serve.triton.model import FastWanModel
from fastwan.serve.triton.repository import write_repository
from testkit.fake_player import SHAPE, FakePlayer

LARGE = VideoShape(height=64, width=48, num_frames=5)


class TritonError(Exception):
    """The codes that the model uses."""

    INVALID_ARG, CANCELLED, INTERNAL = "invalid", "cancelled", "internal"

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class Tensor:
    """A tensor as the backend has it."""

    name: str
    values: np.ndarray

    def as_numpy(self) -> np.ndarray:
        return self.values


@dataclass
class Response:
    """What the model answers."""

    output_tensors: list[Tensor]
    error: TritonError | None = None

    def __getitem__(self, name: str) -> np.ndarray:
        return next(each.values for each in self.output_tensors if each.name == name)


@dataclass
class Request:
    """Inputs by name."""

    inputs: dict[str, np.ndarray]
    cancelled: bool = field(default=False)

    def is_cancelled(self) -> bool:
        return self.cancelled


@pytest.fixture(autouse=True)
def backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module that Triton gives a model."""

    def get_input_tensor_by_name(request: Request, name: str) -> Tensor | None:
        return Tensor(name, request.inputs[name]) if name in request.inputs else None

    module: Any = ModuleType("triton_python_backend_utils")
    module.TritonError, module.Tensor, module.InferenceResponse = TritonError, Tensor, Response
    module.get_input_tensor_by_name = get_input_tensor_by_name
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", module)


def request(prompt: str = "fox", **more: Any) -> Request:
    inputs = {"prompt": np.array([prompt.encode()], object)}
    return Request({**inputs, **{name: np.array([value]) for name, value in more.items()}})


def arguments(repository: Path, device: str = "cpu", kind: str = "CPU") -> dict[str, str]:
    """As Triton gives them to `initialize`."""
    parameters = {"device": {"string_value": device}, "bundle": {"string_value": "bundle"}}
    return {
        "model_config": json.dumps({"parameters": parameters}),
        "model_repository": str(repository),
        "model_version": "1",
        "model_instance_kind": kind,
        "model_instance_device_id": "3",
    }


@pytest.fixture
def model(player: FakePlayer) -> FastWanModel:
    model = FastWanModel(lambda _folder, _device: player)
    model.initialize(arguments(Path("repository")))
    return model


@pytest.mark.parametrize(
    ("shapes", "dims"), [((SHAPE,), [5, 32, 48, 3]), ((SHAPE, LARGE), [5, -1, 48, 3])]
)
def test_the_config_is_one_of_tritons(shapes: tuple[VideoShape, ...], dims: list[int]) -> None:
    schema = pytest.importorskip(
        "tritonclient.grpc.model_config_pb2", reason="needs tritonclient[grpc]"
    )
    from google.protobuf import text_format

    config = text_format.Parse(config_text("fox", "cuda", shapes), schema.ModelConfig())
    assert (config.name, config.backend, config.max_batch_size) == ("fox", "python", 0)
    assert list(config.output[0].dims) == dims
    required = [each.name for each in config.input if not each.optional]
    assert required == ["prompt"]
    assert config.instance_group[0].kind == schema.ModelInstanceGroup.KIND_GPU
    assert config.parameters["device"].string_value == "cuda"
    with pytest.raises(text_format.ParseError):
        text_format.Parse(
            config_text("fox", "cuda", shapes).replace("backend", "backends"), schema.ModelConfig()
        )


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_the_config_names_what_an_instance_takes(device: str) -> None:
    text = config_text("fox", device, [SHAPE])
    assert ("KIND_CPU" in text) == (device == "cpu")
    assert ("KIND_GPU" in text) == (device != "cpu")


def test_each_request_has_its_answer(model: FastWanModel) -> None:
    first, second = model.execute(
        [request(seed=np.uint64(7)), request(seed=np.uint64(2**64 - 1), size=b"48x32")]
    )
    assert first["frames"].shape == (5, 32, 48, 3)
    assert (first["frames"] == 7).all()
    assert (second["frames"] == 255).all()
    assert second["seed"][0] == 2**64 - 1


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        (request(size=b"10x10"), TritonError.INVALID_ARG),
        (request(num_frames=np.int32(0)), TritonError.INVALID_ARG),
        (Request({}), TritonError.INVALID_ARG),
        (Request({"prompt": np.array([b"a", b"b"], object)}), TritonError.INVALID_ARG),
        (Request(request().inputs, cancelled=True), TritonError.CANCELLED),
        (request(), None),
    ],
)
def test_what_cannot_be_made_is_an_error_of_its_request_alone(
    model: FastWanModel, asked: Request, code: str | None
) -> None:
    answer, other = model.execute([asked, request(seed=np.uint64(1))])
    assert (answer.error and answer.error.code) == code
    assert other.error is None
    assert (other["frames"] == 1).all()


def test_a_device_that_fails_is_an_internal_error(model: FastWanModel, player: FakePlayer) -> None:
    from fastwan.errors import EnvironmentLacks

    player.fault = EnvironmentLacks("the device is lost")
    failed, good = model.execute([request(), request()])
    assert failed.error is not None
    assert failed.error.code == TritonError.INTERNAL
    assert good.error is None


@pytest.mark.parametrize("kind", ["GPU", "CPU"])
def test_an_instance_on_a_gpu_sees_that_one_alone(
    player: FakePlayer, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    seen = SimpleNamespace()

    def open_player(folder: Path, device: str) -> FakePlayer:
        import os

        seen.gpus, seen.folder, seen.device = os.environ["CUDA_VISIBLE_DEVICES"], folder, device
        return player

    model = FastWanModel(open_player)
    model.initialize(arguments(Path("models/fox"), "cuda", kind))
    assert seen.gpus == ("3" if kind == "GPU" else "0,1")
    assert (seen.folder, seen.device) == (Path("models/fox/1/bundle"), "cuda")
    model.finalize()
    assert player.closed


def test_a_repository_plays_its_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    write_repository(tiny_bundle, tmp_path / "models", name="fox", device="cpu")
    folder = tmp_path / "models" / "fox"
    spec = importlib.util.spec_from_file_location("written_model", folder / "1" / "model.py")
    assert spec is not None
    assert spec.loader is not None
    written = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(written)
    model = written.TritonPythonModel()
    model.initialize(arguments(folder))
    (answer,) = model.execute([request(seed=np.uint64(5))])
    model.finalize()
    assert answer.error is None
    with FastWanPipeline.from_bundle(tiny_bundle, "cpu") as pipeline:
        alone = pipeline("fox", seed=5, output_type="uint8").frames
    assert np.array_equal(answer["frames"], np.asarray(alone[0]))


@pytest.mark.parametrize("name", ["../fox", "", "fox"])
def test_a_name_that_is_no_folders_is_refused(tiny_bundle: Path, tmp_path: Path, name: str) -> None:
    place = tmp_path / "models"
    if name == "fox":
        write_repository(tiny_bundle, place, name=name, device="cpu")
        assert (place / name / "config.pbtxt").is_file()
    else:
        with pytest.raises(BadInput, match="no name of a model"):
            write_repository(tiny_bundle, place, name=name, device="cpu")
