"""The stages of the attention follow the kind that the bundle launches."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from fastwan.plugins.regions import REGIONS
from fastwan.plugins.regions.attention import AttentionRegion
from fastwan.plugins.regions.sage_attention2 import Sage2Attributes, SageAttention2
from fastwan.plugins.regions.sage_attention3 import SageAttention3, SageAttributes
from fastwan.quality.selftest import regions
from fastwan.quality.selftest.attention_kinds import KINDS
from fastwan.quality.selftest.context import Context, StageFailure
from fastwan.quality.selftest.memory import to_numpy, to_torch
from fastwan.runtime.device.null import Call
from testkit.host_device import HostDevice, at

NODES: dict[str, AttentionRegion[Any, Any]] = {
    "SageAttention3": SageAttention3(1, 70, SageAttributes(2, 70)),
    "SageAttention2": SageAttention2(1, 70, Sage2Attributes(2, 70, per_warp=False)),
}
MODES = {
    "SageAttention3": {"published maxima", "exact maxima"},
    "SageAttention2": {"scales of a thread", "scales of a warp"},
}


class HostLibrary:
    """The device code of a prologue, compiled for the processor here.

    Args:
        damaged: the operand whose first byte is another; none where empty.
    """

    emulated = False

    def __init__(self, emulation: ctypes.CDLL, prefix: str, device: Any, damaged: str) -> None:
        self._emulation, self._prefix = emulation, prefix
        self._device, self._damaged = device, damaged

    def workspace_bytes(self, region: Any) -> int:
        return int(region.workspace_bytes)

    def layout(self, region: Any) -> Any:
        layout, desc = region.new_layout(), region.desc()
        called = getattr(self._emulation, f"{self._prefix}_layout")
        called(ctypes.byref(desc), ctypes.byref(layout))
        return layout

    def enqueue_prologue(
        self, region: Any, inputs: Any, outputs: Any, workspace: int, size: int, stream: int
    ) -> None:
        def run() -> None:
            desc = region.desc()
            called = getattr(self._emulation, f"{self._prefix}_prologue")
            called(
                ctypes.byref(desc), (ctypes.c_void_p * len(inputs))(*inputs),
                (ctypes.c_void_p * 1)(*outputs), ctypes.c_void_p(workspace),
            )  # fmt: skip
            if self._damaged:
                at(workspace + getattr(self.layout(region), self._damaged), "uint8", 1)[0] ^= 1

        self._device.submit(Call("region", "prologue", stream), run)


@pytest.fixture(params=NODES)
def op(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def emulations(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ctypes.CDLL]:
    """The prologue of each kind."""
    return {
        op: regions.compile_for_host(tmp_path_factory.mktemp(op), KINDS[op].host_source)
        for op in NODES
    }


@pytest.fixture
def context(make_bundle: Callable[..., Any], op: str) -> Context:
    machine: Any = SimpleNamespace(kind="cuda", wanted_capability=lambda _: 89)
    made = Context(make_bundle(), machine)
    made.__dict__["attention"] = NODES[op]
    made.__dict__["device"] = HostDevice()
    return made


def test_every_kind_of_attention_has_a_row() -> None:
    kinds = {name for name, kind in REGIONS.items() if issubclass(kind, AttentionRegion)}
    assert set(KINDS) == kinds == set(NODES)


@pytest.mark.parametrize("damaged", ["", "q", "k_scale", "v"])
def test_the_prologue_is_held_to_the_operands_of_its_kind(
    context: Context, op: str, emulations: dict[str, ctypes.CDLL], damaged: str
) -> None:
    prefix = KINDS[op].host_prefix
    library = HostLibrary(emulations[op], prefix, context.device, damaged)
    context.__dict__["library"] = library
    if not damaged:
        assert "are those of the reference" in regions.prologue(context).note
        return
    with pytest.raises(StageFailure, match=f"the prologue's {damaged} of 1 tokens: 1 of"):
        regions.prologue(context)


def test_without_a_gpu_the_device_code_of_its_kind_is_run(context: Context) -> None:
    outcome = regions.prologue_on_host(context)
    assert "of 1, 129, 70 tokens are those of the reference" in outcome.note


@pytest.mark.parametrize("factor", [1.0, 1.05])
def test_the_attention_is_held_to_the_reference_in_each_mode_of_its_kind(
    context: Context, op: str, factor: float
) -> None:
    def region(
        node: Any, inputs: Any, outputs: Any, workspace: int, size: int, stream: int
    ) -> None:
        given = [
            to_torch(at(address, spec.dtype, _size(spec)).reshape([*map(int, spec.shape)]))
            for address, spec in zip(inputs, node.inputs, strict=True)
        ]
        made = to_numpy(node.reference(*given)[0] * factor).reshape(-1)
        at(outputs[0], made.dtype.name, made.size)[:] = made

    context.__dict__["platform"] = SimpleNamespace(
        kernels=SimpleNamespace(region=region), processors=0
    )
    if factor == 1.0:
        outcome = regions.attention(context)
        assert len(outcome.figures) == 12
        assert {figure.name.split(", ")[-1] for figure in outcome.figures} == MODES[op]
        assert {figure.value for figure in outcome.figures} == {0.0}
        return
    with pytest.raises(StageFailure, match=r"differs from the reference by 0\.05"):
        regions.attention(context)


def _size(spec: Any) -> int:
    size = 1
    for each in spec.shape:
        size *= int(each)
    return size
