"""A bundle of any fusion in host memory: engines in torch and ONNX Runtime, regions in torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import onnx
import torch
from torch import Tensor

from fastwan.bundle import Bundle
from fastwan.engines.build import ONNX_FOLDER
from fastwan.engines.plan import plan_sources
from fastwan.export.attentions import find_attention
from fastwan.export.passes.fusions import find_fusion
from fastwan.onnx_guard import BundleGraph
from fastwan.plugins.glue_reference import quantize
from fastwan.plugins.regions import RegionOp
from fastwan.plugins.regions.glue import GlueOp
from fastwan.quality.emulated.watch import reference_of as attention_of
from fastwan.quality.selftest.engine_references import EngineReferences
from fastwan.quality.selftest.glue import reference_of
from fastwan.quality.selftest.memory import to_numpy, to_torch
from fastwan.quality.verify.subject import Subject
from fastwan.runtime.device.first_load import FirstLoad
from fastwan.runtime.device.null import NullDevice, NullKernels
from fastwan.runtime.device.session import Platform
from fastwan.runtime.emulated.graph import TorchGraph
from testkit.host_device import HostDevice, HostEngine, HostKernels, LateEngine, at

CPU = torch.device("cpu")
Results = list[Tensor]
Compute = Callable[..., Results]
Fault = Callable[[Compute, list[Tensor]], Results]
"""What a kernel at fault makes: of what it should compute, and its inputs."""

_TORCH = {"float8_e4m3fn": torch.float8_e4m3fn, "float4_e2m1fn": torch.uint8}


def tensor_at(address: int, shape: Sequence[Any], dtype: str) -> Tensor:
    """A tensor over memory; 4-bit numbers are the bytes that they lie in."""
    kind = _TORCH.get(dtype) or getattr(torch, dtype)
    sizes = [int(size) for size in shape]
    if dtype.startswith("float4"):
        sizes[-1] //= 2
    raw = at(address, "uint8", torch.Size(sizes).numel() * kind.itemsize)
    return torch.from_numpy(raw).view(kind).view(sizes)


class GraphEngine(LateEngine):
    """An engine whose graph torch runs.

    Args:
        compute: its outputs by name, of its inputs by name.
    """

    def __init__(
        self,
        device: HostDevice,
        name: str,
        bundle: Bundle,
        compute: Callable[[dict[str, Tensor]], Mapping[str, Tensor]],
    ) -> None:
        super().__init__(device, name, bundle)
        self._compute = compute

    def run(self, bindings: Mapping[str, Any]) -> None:
        bound = {
            spec.name: tensor_at(*bindings[spec.name], spec.dtype)
            for spec in (*self._record.inputs, *self._record.outputs)
        }
        made = self._compute({spec.name: bound[spec.name] for spec in self._record.inputs})
        for spec in self._record.outputs:
            bound[spec.name].copy_(made[spec.name])


def engines_of(device: HostDevice, bundle: Bundle) -> dict[str, LateEngine]:
    """Every engine that a video is made with."""
    manifest, folder = bundle.manifest, bundle.folder / ONNX_FOLDER
    sources, _ = plan_sources(
        folder, manifest.onnx, attention=find_attention(manifest.attention), plugins=False,
        components=("dit",), fusion=find_fusion(manifest.fusion),
    )  # fmt: skip
    references = EngineReferences(Subject(bundle))
    engines: dict[str, LateEngine] = {"decoder": HostEngine(device, "decoder", bundle)}
    for source in sources:
        record = manifest.engines[source.name]
        compute: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]
        if record.runs == "prompt":
            compute = partial(_on_onnxruntime, references, source.name)
        else:
            proto = onnx.load_from_string(source.model)
            graph = BundleGraph(proto, source.model, folder, f"{source.name}.onnx")
            outputs = [spec.name for spec in record.outputs]
            compute = _Graph(graph, [spec.name for spec in record.inputs], outputs)
        engines[source.name] = GraphEngine(device, source.name, bundle, compute)
    return engines


def fallbacks_of(device: HostDevice, bundle: Bundle) -> dict[str, LateEngine]:
    """Every engine that can be played in place of regions."""
    return {
        name: GraphEngine(device, name, bundle, _Fallback(bundle, name))
        for name in bundle.manifest.fallbacks
    }


def _on_onnxruntime(
    references: EngineReferences, name: str, inputs: dict[str, Tensor]
) -> Mapping[str, Tensor]:
    arrays = {key: to_numpy(value) for key, value in inputs.items()}
    return {key: to_torch(value) for key, value in references.run(name, arrays).items()}


class _Graph:
    def __init__(self, graph: BundleGraph, inputs: list[str], outputs: list[str]) -> None:
        self._graph = TorchGraph(graph, inputs, outputs, CPU)
        self._outputs = outputs

    def __call__(self, inputs: dict[str, Tensor]) -> Mapping[str, Tensor]:
        made: dict[str, Any] = {name: _Kept() for name in self._outputs}
        self._graph.run(inputs, made)
        return {name: each.value for name, each in made.items()}


class _Kept:
    """Takes what a graph writes, whatever its shape."""

    value: Tensor

    def copy_(self, value: Tensor) -> None:
        self.value = value


class _Fallback:
    """The graph of a fallback up to its quantiser, and that by its definition."""

    def __init__(self, bundle: Bundle, name: str) -> None:
        record = bundle.manifest.fallbacks[name]
        content = bundle.read(record.graph)
        proto = onnx.load_from_string(content)
        graph = BundleGraph(proto, content, bundle.folder, record.graph)
        inputs = [spec.name for spec in record.engine.inputs]
        self._quantised = [
            tuple(node.input[:1]) + tuple(node.output)
            for node in proto.graph.node
            if node.op_type == "TRT_FP4DynamicQuantize"
        ]
        made = {name for _, *names in self._quantised for name in names}
        wanted = [spec.name for spec in record.engine.outputs if spec.name not in made]
        wanted += [x for x, *_ in self._quantised if x not in inputs]
        self._compute = _Graph(graph, inputs, wanted)

    def __call__(self, inputs: dict[str, Tensor]) -> Mapping[str, Tensor]:
        values = {**inputs, **self._compute(inputs)}
        for x, codes, scales in self._quantised:
            values[codes], values[scales] = quantize(values[x])
        return values


class FaultyKernels(HostKernels):
    """Regions computed by their references, but for those at fault.

    Args:
        faults: by kind of region.
    """

    def __init__(self, device: HostDevice, faults: Mapping[str, Fault] | None = None) -> None:
        super().__init__(device)
        self._faults = faults or {}

    def region(
        self,
        region: RegionOp,
        inputs: Sequence[int],
        outputs: Sequence[int],
        workspace: int,
        workspace_bytes: int,
        stream: int,
    ) -> None:
        recorder = NullDevice()
        NullKernels(recorder).region(region, inputs, outputs, workspace, workspace_bytes, stream)
        (call,) = recorder.calls
        self._submit(call, lambda: self._compute(region, inputs, outputs))

    def _compute(self, region: RegionOp, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        given, written = (
            [tensor_at(a, spec.shape, spec.dtype) for a, spec in zip(at_, specs, strict=True)]
            for at_, specs in ((inputs, region.inputs), (outputs, region.outputs))
        )
        fault = self._faults.get(region.op)
        compute = _reference(region)
        made = compute(*given) if fault is None else fault(compute, given)
        for target, result in zip(written, made, strict=True):
            target.copy_(result)


def _reference(region: RegionOp) -> Compute:
    if isinstance(region, GlueOp):
        return lambda *given: list(reference_of(region)(*given))
    return lambda *given: [attention_of(region)(*given)]


def fused_host_platform(
    device: HostDevice,
    faults: Mapping[str, Fault] | None = None,
    first_load: FirstLoad | None = None,
) -> Platform:
    """A platform that computes what a GPU would, on the host."""
    return Platform(
        device,
        FaultyKernels(device, faults),
        partial(engines_of, device),
        partial(fallbacks_of, device),
        first_load=first_load,
    )
