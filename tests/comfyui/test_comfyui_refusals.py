"""How the nodes fail, and what they do not let ComfyUI change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fastwan.comfyui import loaded
from fastwan.errors import BadInput, EnvironmentLacks
from fastwan.runtime.device.choice import DeviceChoice
from fastwan.runtime.pipeline import FastWanPipeline
from testkit.comfyui_graph import graph
from testkit.fake_comfyui import Executor, FakeComfyUI


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("some/tiny", ""),
        ("some/tiny 160x96x9", ""),
        ("some/tiny 832x480x81", "unknown shape '832x480x81': one of 160x96x9"),
        ("tiny", "there is no bundle 'tiny' .*: choose one of some/tiny 160x96x9"),
        ("some", "there is no bundle 'some'"),
    ],
)
def test_a_bundle_or_shape_that_is_not_there_is_refused(
    executor: Executor, choice: str, message: str
) -> None:
    if not message:
        assert executor.run({"load": graph(bundle=choice)["load"]})["load"][1:] == (160, 96, 9)
        return
    with pytest.raises(BadInput, match=message):
        executor.run(graph(bundle=choice))
    assert executor.ran == ["load"]


def test_without_a_bundle_it_says_how_to_make_one(
    comfyui: FakeComfyUI, executor: Executor, models: Path
) -> None:
    (models / "fastwan" / "some" / "tiny").unlink()
    with pytest.raises(BadInput, match=r"build-engine --checkpoint CHECKPOINT -o .*fastwan-qad"):
        executor.run(graph())


def test_a_folder_that_is_no_bundle_is_not_listed(executor: Executor, models: Path) -> None:
    broken = models / "fastwan" / "broken"
    broken.mkdir()
    (broken / "manifest.json").write_text("{}")
    rows = executor.nodes["FastWanLoadBundle"].INPUT_TYPES()["required"]["bundle"][0]
    assert rows == ["some/tiny 160x96x9"]
    with pytest.raises(BadInput, match="broken"):
        executor.run(graph(bundle="broken"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"width": 640}, "width 640 was asked for, the bundle makes 160"),
        ({"num_frames": 81}, "num_frames 81 was asked for, the bundle makes 9"),
        ({"prompt": ""}, "prompt"),
        ({"sampler": "unipc-50"}, "unipc-50"),
        ({"negative_prompt": "blur"}, "negative_prompt would have no effect"),
        ({"guidance_scale": 5.0}, "the distilled model runs without guidance"),
    ],
)
def test_what_a_bundle_cannot_do_is_refused_in_one_line(
    executor: Executor, comfyui: FakeComfyUI, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message) as raised:
        executor.run(graph(**given))
    assert "\n" not in str(raised.value)
    assert comfyui.texts[-1] == ("play", str(raised.value))
    fine = {"width": 160, "height": 96, "num_frames": 9, "guidance_scale": 1.0}
    assert executor.run(graph(**fine))["play"][0].shape == (9, 96, 160, 3)


@pytest.mark.parametrize("allocator", ["native", "cudaMallocAsync"])
def test_the_emulated_device_computes_as_outside_of_comfyui(
    executor: Executor, monkeypatch: pytest.MonkeyPatch, allocator: str
) -> None:
    """ComfyUI chooses an allocator and how attention adds, for the whole process."""

    def opened(*args: Any, **options: Any) -> FastWanPipeline:
        pipeline = on_cpu(*args, **options)
        pipeline.choice = DeviceChoice("emulated", "")
        return pipeline

    on_cpu, math = FastWanPipeline.from_bundle, torch.backends.cuda
    monkeypatch.setattr(loaded.FastWanPipeline, "from_bundle", opened)
    monkeypatch.setattr(torch.cuda, "get_allocator_backend", lambda: allocator)
    before = math.fp16_bf16_reduction_math_sdp_allowed()
    math.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        if allocator == "native":
            executor.run({"load": graph()["load"]})
            assert not math.fp16_bf16_reduction_math_sdp_allowed()
        else:
            with pytest.raises(EnvironmentLacks, match="start ComfyUI with --disable-cuda-malloc"):
                executor.run({"load": graph()["load"]})
    finally:
        math.allow_fp16_bf16_reduction_math_sdp(before)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (
            ModuleNotFoundError("no", name="onnxruntime"),
            EnvironmentLacks,
            "'onnxruntime' is missing",
        ),
        (OSError(28, "No space left on device"), EnvironmentLacks, "No space left on device"),
        (FileNotFoundError(2, "No such file", "x.engine"), BadInput, "No such file \\(x.engine\\)"),
        (ValueError("a fault"), ValueError, "a fault"),
    ],
)
def test_errors_of_the_machine_are_one_line_on_the_node(
    executor: Executor,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    kind: type[Exception],
    message: str,
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr("fastwan.comfyui.loaded.LoadedBundle.__init__", fail)
    with pytest.raises(kind, match=message) as raised:
        executor.run(graph())
    assert "\n" not in str(raised.value)
