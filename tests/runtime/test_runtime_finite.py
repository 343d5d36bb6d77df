"""NaN, Inf and numbers beyond bfloat16 are an error at the first place that can see them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from fastwan.bundle import open_bundle
from fastwan.errors import BadInput, FastWanError, VerificationFailed
from fastwan.runtime.device.choice import DeviceChoice
from fastwan.runtime.device.components import DeviceComponents
from fastwan.runtime.device.constants import initializers
from fastwan.runtime.generate import generate
from fastwan.runtime.model.checks import LARGEST, is_finite
from fastwan.runtime.pipeline import FastWanPipeline

BROKEN = (np.nan, np.inf, -np.inf, 1e39, 3.4e38)


@pytest.fixture
def make_pipe(host_device: Any, host_platform: Any) -> Callable[[Any, str], FastWanPipeline]:
    def make(bundle: Any, where: str) -> FastWanPipeline:
        if where == "cpu":
            return FastWanPipeline.from_bundle(bundle.root, "cpu")
        opened = open_bundle(bundle.root)
        components = DeviceComponents(opened, host_platform(host_device))
        return FastWanPipeline(opened, DeviceChoice("cuda"), components)

    return make


@pytest.mark.parametrize("value", BROKEN)
@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64"])
def test_every_format_is_looked_at(name: str, value: float) -> None:
    array = np.full((2, 3), 7, name)
    assert is_finite(array)
    with np.errstate(over="ignore"):
        array[1, 2] = value
    assert not is_finite(array)
    assert is_finite(np.array([LARGEST, -LARGEST]))
    assert is_finite(np.zeros((0, 3), np.float32))


@pytest.mark.parametrize("where", ["cpu", "device"])
@pytest.mark.parametrize("value", BROKEN)
@pytest.mark.parametrize("name", ["latents", "prompt_embeds"])
def test_what_is_given_is_refused_by_name(
    bundle: Any, make_pipe: Any, name: str, value: float, where: str
) -> None:
    pipe = make_pipe(bundle, where)
    values = np.zeros({"latents": (1, 16, 3, 2, 4), "prompt_embeds": (1, 2, 8)}[name])
    prompt = {} if name == "prompt_embeds" else {"prompt": "a"}
    pipe(**prompt, **{name: values}, output_type="latent")
    values.flat[-1] = value
    with pytest.raises(BadInput, match=rf"NaN, Inf .* in {name}"):
        pipe(**prompt, **{name: values})
    with pytest.raises(BadInput, match=rf"NaN, Inf .* in {name}"):
        pipe(**prompt, **{name: torch.from_numpy(values)})


@pytest.mark.parametrize("where", ["cpu", "device"])
@pytest.mark.parametrize("step", [0, 2])
def test_what_a_callback_returns_is_refused(
    bundle: Any, make_pipe: Any, step: int, where: str
) -> None:
    def spoil(value: float) -> Any:
        def callback(_pipe: Any, index: int, _t: int, given: dict[str, Any]) -> dict[str, Any]:
            if index == step:
                given["latents"][0, 0, 0, 0, 0] = value
            return given

        return callback

    pipe = make_pipe(bundle, where)
    pipe("a", callback_on_step_end=spoil(0.5))
    with pytest.raises(BadInput, match=r"NaN, Inf .* in latents of the callback"):
        pipe("a", callback_on_step_end=spoil(np.nan))
    pipe("a")


def spoil_weight(bundle: Any, graph: str, value: float) -> None:
    """Put a value into the weight of a CPU graph, and mend every hash."""
    path = bundle.onnx / f"{graph}.cpu.onnx"
    model = onnx.load(path)
    (index,) = [i for i, each in enumerate(model.graph.initializer) if each.name == "w"]
    weight = numpy_helper.to_array(model.graph.initializer[index]).copy()
    weight.flat[3] = value
    model.graph.initializer[index].CopyFrom(numpy_helper.from_array(weight, "w"))
    path.unlink()
    if graph == "dit":
        (bundle.onnx / "dit.data").unlink()
        options = {"save_as_external_data": True, "location": "dit.data", "size_threshold": 0}
        onnx.save(model, path, **options)
    else:
        onnx.save(model, path)
    bundle.write_manifest()


@pytest.mark.parametrize("where", ["cpu", "device"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("output_type", ["np", "latent"])
def test_a_step_that_makes_nan_is_an_error(
    bundle: Any, make_pipe: Any, where: str, value: float, output_type: Any
) -> None:
    spoil_weight(bundle, "dit", 0.25)
    make_pipe(bundle, where)("a", output_type=output_type)
    spoil_weight(bundle, "dit", value)
    fused = where == "device" and output_type == "np"
    when = "after the last step" if fused else "after step 0 at timestep 999"
    broken = make_pipe(bundle, where)
    with pytest.raises(VerificationFailed, match=f"the latents hold NaN or Inf {when}"):
        broken("a", output_type=output_type)


def test_generate_writes_no_video_of_nan(bundle: Any, tmp_path: Any) -> None:
    spoil_weight(bundle, "dit", 0.25)
    generate(bundle.root, "a", tmp_path / "good", device="cpu")
    spoil_weight(bundle, "dit", np.nan)
    with pytest.raises(VerificationFailed, match="latents hold NaN"):
        generate(bundle.root, "a", tmp_path / "bad", device="cpu")
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize("where", ["cpu", "device"])
def test_an_encoder_that_makes_nan_is_an_error(bundle: Any, make_pipe: Any, where: str) -> None:
    spoil_weight(bundle, "text_encoder", 0.25)
    make_pipe(bundle, where)("a", output_type="latent")
    spoil_weight(bundle, "text_encoder", np.nan)
    broken = make_pipe(bundle, where)
    for call in (broken, broken.embed):
        with pytest.raises(VerificationFailed, match="the prompt's embeddings hold NaN"):
            call("a")


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_a_scale_that_a_region_reads_is_looked_at(bundle: Any, name: str) -> None:
    def write(value: float) -> None:
        scale = np.array([1, value, 1], name)
        kind = onnx.helper.np_dtype_to_tensor_dtype(scale.dtype)
        tensor = onnx.helper.make_tensor("qkv_scale", kind, [3], scale.tobytes(), raw=True)
        model = onnx.load(bundle.onnx / "time_tables.cpu.onnx")
        model.graph.initializer.append(tensor)
        onnx.save(model, bundle.onnx / "dit.onnx")
        bundle.data = {}
        bundle.write_manifest()

    write(0.5)
    found = dict(initializers(open_bundle(bundle.root), ["qkv_scale"]))
    assert found["qkv_scale"] == np.array([1, 0.5, 1], name).tobytes()
    write(np.nan)
    with pytest.raises(VerificationFailed, match="qkv_scale holds NaN"):
        dict(initializers(open_bundle(bundle.root), ["qkv_scale"]))


@pytest.mark.parametrize("rows", [0, 7])
def test_embeddings_have_rows_that_fit(bundle: Any, make_pipe: Any, rows: int) -> None:
    pipe = make_pipe(bundle, "cpu")
    pipe(prompt_embeds=np.zeros((1, 6, 8), np.float32), output_type="latent")
    with pytest.raises(FastWanError, match=rf"\[1, {rows}, 8\]"):
        pipe(prompt_embeds=np.zeros((1, rows, 8), np.float32))
