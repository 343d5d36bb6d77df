"""A GPU in host memory that really plays the tiny bundle, and the faults that can be put into it.

Engines are ONNX Runtime over the graphs that they were built of, regions the reference in torch:
without a fault every result is that of the references.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fastwan.bundle import Bundle, open_bundle
from fastwan.errors import EnvironmentLacks
from fastwan.plugins import nvfp4
from fastwan.plugins.regions.base import RegionOp
from fastwan.plugins.regions.sage_attention3 import SageAttention3, SageLayout
from fastwan.quality.selftest import probe
from fastwan.quality.selftest.attention_kinds import expected_operands
from fastwan.quality.selftest.engine_references import EngineReferences
from fastwan.quality.selftest.machine import Driver, Machine
from fastwan.quality.selftest.memory import to_numpy, to_torch
from fastwan.quality.verify.subject import Subject
from fastwan.runtime.device.null import Call, NullDevice, NullKernels
from fastwan.runtime.device.session import Platform
from testkit.host_device import HostDevice, HostEngine, HostKernels, at

Change = Callable[[Any], Any]


def same(value: Any) -> Any:
    return value


@dataclass
class Faults:
    """What a fake machine does otherwise than a good one."""

    driver: Driver | None = field(default_factory=lambda: Driver("13.0", 1, 120))
    capabilities: tuple[str, ...] = ("12.0", "12.1")
    operands: Change = same
    attention: Change = same
    glue: Callable[[RegionOp, Any], Any] = lambda _, made: made
    cast: Change = same
    weight: Change = same
    activation: Change = same
    quantiser: Change = nvfp4.quantize_activation
    engines: dict[str, Change] = field(default_factory=dict)
    device: HostDevice = field(default_factory=HostDevice)


def layout_of(region: SageAttention3) -> SageLayout:
    """Operands one behind the other, as `SageAttention3.workspace_bytes` counts them."""
    padded = -(-region.attributes.num_tokens // 128) * 128
    rows = region.batch * region.attributes.num_heads * padded
    layout, offset = SageLayout(padded_tokens=padded), 0
    for name in ("q", "q_scale", "k", "k_scale", "v", "v_scale", "delta_s"):
        setattr(layout, name, offset)
        size = rows * (4 if name == "delta_s" else 8 if name.endswith("scale") else 64)
        offset += -(-size // 1024) * 1024
    layout.total = offset
    return layout


def tensors(region: RegionOp, addresses: Sequence[int]) -> tuple[torch.Tensor, ...]:
    return tuple(
        to_torch(at(address, spec.dtype, int(np.prod(spec.shape))).reshape(spec.shape))
        for address, spec in zip(addresses, region.inputs, strict=True)
    )


class FakeLibrary:
    """The plugin library over host memory."""

    emulated = False
    path = Path("libfastwan_plugins.so")

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self.build_info = {"version": "0.1.0", "attention": "120a,121a"}

    @property
    def compute_capabilities(self) -> tuple[str, ...]:
        return self._faults.capabilities

    def check_device(self, device: int = 0, kinds: Any = ()) -> None:
        if "12.0" not in self._faults.capabilities:
            listed = ", ".join(self._faults.capabilities)
            raise EnvironmentLacks(
                f"the plugin library serves compute capability {listed}, not 12.0"
            )

    def workspace_bytes(self, region: RegionOp) -> int:
        return region.workspace_bytes

    def layout(self, region: SageAttention3) -> SageLayout:
        return layout_of(region)

    def enqueue_prologue(
        self, region: Any, inputs: Any, outputs: Any, workspace: int, size: int, stream: int
    ) -> None:
        def run() -> None:
            made = self._faults.operands(expected_operands(region, tensors(region, inputs)))
            layout = layout_of(region)
            for name, values in zip(made._fields, made, strict=True):
                target = at(workspace + getattr(layout, name), "uint8", values.numel())
                target[:] = values.contiguous().numpy().reshape(-1)

        self._faults.device.submit(Call("region", "prologue", stream), run)


class FakeKernels(HostKernels):
    """The small kernels in numpy, regions by the reference."""

    def __init__(self, faults: Faults) -> None:
        super().__init__(faults.device)
        self._faults = faults

    def region(
        self, region: Any, inputs: Any, outputs: Any, workspace: int, size: int, stream: int
    ) -> None:
        recorder = NullDevice()
        NullKernels(recorder).region(region, inputs, outputs, workspace, size, stream)
        (call,) = recorder.calls

        def run() -> None:
            made = region.reference(*tensors(region, inputs))
            if isinstance(region, SageAttention3):
                made = (self._faults.attention(made[0]),)
            else:
                made = self._faults.glue(region, made)
            for address, value in zip(outputs, made, strict=True):
                flat = to_numpy(value).reshape(-1)
                at(address, flat.dtype.name, flat.size)[:] = flat

        self._submit(call, run)

    def cast(self, source: Any, target: Any, rows: Any, stream: int) -> None:
        super().cast(source, target, self._faults.cast(rows), stream)


class FakeLinear:
    """The probe as a GPU computes it."""

    scratch_bytes = 64

    def __init__(self, faults: Faults) -> None:
        self._faults = faults

    def enqueue(
        self, bindings: Any, scratch: int, scratch_bytes: int, stream: int, profile: int = 0
    ) -> None:
        faults = self._faults

        def run() -> None:
            x = to_torch(at(bindings["x"][0], "bfloat16", probe.K**2).reshape(probe.K, probe.K))
            activation = faults.activation(probe.Packed(*faults.quantiser(x)))
            y = probe.product(activation, faults.weight(probe.weight()))
            at(bindings["y"][0], "bfloat16", probe.K * probe.N)[:] = to_numpy(y.bfloat16()).reshape(
                -1
            )

        faults.device.submit(Call("engine", "probe", stream), run)


def graph_of(references: EngineReferences, name: str, record: Any, change: Change) -> Any:
    """An engine of the transformer as `HostEngine` takes it."""

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {key: change(value) for key, value in references.run(name, inputs).items()}

    return SimpleNamespace(
        inputs={spec.name: spec for spec in record.inputs},
        outputs={spec.name: spec for spec in record.outputs},
        run=run,
    )


@pytest.fixture(scope="session")
def tiny(tiny_bundle: Path) -> Bundle:
    return open_bundle(tiny_bundle)


@pytest.fixture(scope="session")
def references(tiny: Bundle) -> EngineReferences:
    return EngineReferences(Subject(tiny))


def machine_of(references: EngineReferences, faults: Faults) -> Machine:
    """A machine that looks like a Blackwell GPU with the engines of the references' bundle."""

    def engines(bundle: Bundle) -> dict[str, HostEngine]:
        return {
            name: HostEngine(
                faults.device,
                name,
                bundle,
                graph_of(references, name, record, faults.engines.get(name, same))
                if record.component == "dit"
                else None,
            )
            for name, record in bundle.manifest.engines.items()
        }

    return Machine(
        kind="cuda",
        driver=lambda: faults.driver,
        packages=lambda _: {"tensorrt-rtx": "0"},
        device=lambda: faults.device,
        library=lambda _: FakeLibrary(faults),
        platform=lambda _: Platform(faults.device, FakeKernels(faults), engines),
        linear=lambda _bundle, _probe: FakeLinear(faults),
    )


def machines(
    references: EngineReferences, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Faults], Machine]:
    # The same lowered graphs in every run: they are what takes time.
    monkeypatch.setattr(
        "fastwan.quality.selftest.context.EngineReferences", lambda _subject: references
    )
    return lambda faults: machine_of(references, faults)


@pytest.fixture
def machine_with(
    references: EngineReferences, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Faults], Machine]:
    """A machine with the tiny bundle's engines."""
    return machines(references, monkeypatch)


@pytest.fixture(scope="session")
def lifted(lifted_bundle: Path) -> Bundle:
    return open_bundle(lifted_bundle)


@pytest.fixture(scope="session")
def lifted_references(lifted: Bundle) -> EngineReferences:
    return EngineReferences(Subject(lifted))


@pytest.fixture
def lifted_machine_with(
    lifted_references: EngineReferences, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Faults], Machine]:
    """A machine with the engines of the bundle of which everything is lifted."""
    return machines(lifted_references, monkeypatch)


@pytest.fixture(scope="session")
def kit() -> SimpleNamespace:
    """Helpers of this file."""
    return SimpleNamespace(Faults=Faults, Driver=Driver, same=same)
