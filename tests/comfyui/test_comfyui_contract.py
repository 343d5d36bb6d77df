"""The nodes keep the protocol of ComfyUI's custom nodes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from fastwan.comfyui import nodes
from fastwan.comfyui.custom_node import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from fastwan.config import SAMPLERS
from testkit.fake_comfyui import FakeComfyUI

NAMES = sorted(nodes.NODE_CLASS_MAPPINGS)
TYPES = {"FASTWAN", "CONDITIONING", "IMAGE", "LATENT", "VIDEO", "STRING", "INT", "FLOAT"}


def node(name: str) -> Any:
    return nodes.NODE_CLASS_MAPPINGS[name]


def test_the_custom_node_has_the_four_nodes() -> None:
    assert set(NODE_CLASS_MAPPINGS) == set(NODE_DISPLAY_NAME_MAPPINGS) == set(NAMES)
    assert sorted(NODE_DISPLAY_NAME_MAPPINGS.values()) == [
        "FastWan decode", "FastWan prompt embeds", "FastWan text to video", "Load FastWan bundle",
    ]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_of_known_types_and_arguments_of_the_function(
    name: str, comfyui: FakeComfyUI
) -> None:
    kind = node(name)
    groups = kind.INPUT_TYPES()
    assert set(groups) <= {"required", "optional", "hidden"}
    arguments = dict(inspect.signature(getattr(kind, kind.FUNCTION)).parameters)
    arguments.pop("self")
    for group, inputs in groups.items():
        for each, given in inputs.items():
            default = arguments.pop(each).default
            assert (default is inspect.Parameter.empty) is (group == "required"), each
            if group == "hidden":
                assert given == "UNIQUE_ID"
                continue
            types, *options = given
            if isinstance(types, list):
                assert types
                assert all(isinstance(row, str) for row in types)
            else:
                assert types in TYPES
            assert len(options) <= 1
            assert all(isinstance(each, dict) for each in options)
    assert not arguments


@pytest.mark.parametrize("name", NAMES)
def test_results_have_types_and_names(name: str, comfyui: FakeComfyUI) -> None:
    kind = node(name)
    assert set(kind.RETURN_TYPES) <= TYPES
    assert len(kind.RETURN_TYPES) == len(kind.RETURN_NAMES) == len(set(kind.RETURN_NAMES))
    assert kind.CATEGORY == "FastWan"
    assert kind.DESCRIPTION.endswith(".")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_checked_beforehand_are_inputs_that_are_typed_in(
    name: str, comfyui: FakeComfyUI
) -> None:
    kind = node(name)
    asked = [
        each
        for check in ("VALIDATE_INPUTS", "IS_CHANGED")
        if hasattr(kind, check)
        for each, parameter in inspect.signature(getattr(kind, check)).parameters.items()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    assert asked == (["bundle", "bundle"] if name == "FastWanLoadBundle" else [])
    required = kind.INPUT_TYPES()["required"]
    assert all(isinstance(required[each][0], list) for each in asked)


def test_the_seed_has_comfyuis_control_and_every_seed_of_the_command_line(
    comfyui: FakeComfyUI,
) -> None:
    kind, options = node("FastWanTextToVideo").INPUT_TYPES()["required"]["seed"]
    assert kind == "INT"
    assert options["control_after_generate"] is True
    assert (options["min"], options["max"], options["default"]) == (0, 2**64 - 1, 1024)


def test_every_sampler_can_be_chosen(comfyui: FakeComfyUI) -> None:
    rows = node("FastWanTextToVideo").INPUT_TYPES()["required"]["sampler"][0]
    assert rows == [nodes.OWN, *SAMPLERS]


@pytest.mark.parametrize("video", [True, False])
def test_a_video_is_handed_out_where_there_is_that_type(
    start: Callable[..., FakeComfyUI], video: bool
) -> None:
    start(video=video)
    end = ("VIDEO",) * video
    assert ("IMAGE", "LATENT", *end) == node("FastWanTextToVideo").RETURN_TYPES
    assert ("IMAGE", *end) == node("FastWanDecode").RETURN_TYPES
    assert ("images", *["video"] * video) == node("FastWanDecode").RETURN_NAMES


def test_the_bundles_are_listed_with_what_they_make(comfyui: FakeComfyUI) -> None:
    rows = node("FastWanLoadBundle").INPUT_TYPES()["required"]["bundle"][0]
    assert rows == ["some/tiny 160x96x9"]
