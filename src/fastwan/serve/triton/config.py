"""The config of the model, in the text format of Triton's ``ModelConfig``."""

from __future__ import annotations

import json
from collections.abc import Sequence

from fastwan.config import VideoShape
from fastwan.serve.triton.tensors import FRAMES, INPUTS, SEED, Input

BUNDLE = "bundle"
"""Folder of the bundle, beside ``model.py``."""


def config_text(name: str, device: str, shapes: Sequence[VideoShape]) -> str:
    """``config.pbtxt``.

    Args:
        name: of the model, which is that of its folder.
        device: "cuda", "emulated" or "cpu"; an instance on the first two takes a GPU.
        shapes: of the bundle; an axis that differs among them is told as -1.
    """
    axes = [
        sizes.pop() if len(sizes) == 1 else -1
        for sizes in (
            {each.num_frames for each in shapes},
            {each.height for each in shapes},
            {each.width for each in shapes},
        )
    ]
    outputs = (
        _output(FRAMES, "TYPE_UINT8", [*axes, 3]),
        _output(SEED, "TYPE_UINT64", [1]),
    )
    kind = "KIND_CPU" if device == "cpu" else "KIND_GPU"
    return "\n".join(
        (
            f"name: {_quoted(name)}",
            'backend: "python"',
            "max_batch_size: 0",
            *(_input(each) for each in INPUTS),
            *outputs,
            f"instance_group [ {{ count: 1 kind: {kind} }} ]",
            _parameter("device", device),
            _parameter("bundle", BUNDLE),
            "",
        )
    )


def _input(tensor: Input) -> str:
    optional = " optional: true" if tensor.optional else ""
    return (
        f"input [ {{ name: {_quoted(tensor.name)} data_type: {tensor.data_type} "
        f"dims: [ 1 ]{optional} }} ]"
    )


def _output(name: str, data_type: str, dims: Sequence[int]) -> str:
    sizes = ", ".join(str(each) for each in dims)
    return f"output [ {{ name: {_quoted(name)} data_type: {data_type} dims: [ {sizes} ] }} ]"


def _parameter(key: str, value: str) -> str:
    text = f"{{ key: {_quoted(key)} value: {{ string_value: {_quoted(value)} }} }}"
    return f"parameters {text}"


def _quoted(text: str) -> str:
    return json.dumps(text)  # the escapes of ASCII text are those of the text format
