"""The kernels of a bundle: where each runs, which ONNX nodes it computes, and what it costs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fastwan.bundle import Bundle
from fastwan.engines.layer_json import bundle_layers
from fastwan.engines.layers import LayerRecord
from fastwan.manifest import Cadence, Engine, Region, RegionNode
from fastwan.plugins.regions import region_op
from fastwan.quality.cost import Cost, kernel_cost, launch_cost, usual_records, usual_size
from fastwan.quality.gpus import GpuRates, rates_of

_BLOCK = re.compile(r"(?:^|/)blocks\.(\d+)\.")
_ANY_BLOCK = re.compile(r"\bblocks\.\d+\.")

OWN = "own"
"""Kind of the project's kernels that only move memory."""


@dataclass(frozen=True)
class Kernel:
    """A kernel of an engine, or one that the runtime launches between two engines.

    Attributes:
        name: the builder's, or ``<kind of region>/<launch>``.
        place: engine or region that it belongs to.
        runs: how often its engine runs; a region runs once a denoising step.
        kind: ``gemm``, ``attention``, ``convolution``, ``memory`` or `OWN`.
        dtype: number format that it computes in, see `LayerRecord.precision`; of an attention of
            the project its name in the table of rates.
        nodes: ONNX nodes behind it; of a region the tensors that it writes.
        reads: names of the tensors that it reads and another kernel or the caller writes.
        writes: names of those that it writes.
        weight_bytes: constants that it reads.
        cost: of one run, with a prompt of the usual length.
        block: of the transformer that it belongs to; None for what lies outside.
    """

    name: str
    place: str
    component: str
    runs: Cadence
    kind: str
    dtype: str
    nodes: tuple[str, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    weight_bytes: int
    cost: Cost
    block: int | None = field(default=None)

    @property
    def title(self) -> str:
        """What it computes in few words: the targeted node of a GEMM, the kind of a region."""
        for node in self.nodes:
            if self.kind == "gemm" and node.endswith("/MatMul"):
                return node.removesuffix("/MatMul")
        return re.sub(r"^__myl_|_myl\d+_\d+$", "", self.name)

    @property
    def pattern(self) -> str:
        """`title` with the block's number left out: the same for a kernel of every block."""
        return _ANY_BLOCK.sub("blocks.*.", self.title)


def bundle_kernels(bundle: Bundle) -> list[Kernel]:
    """The kernels of all engines and regions, in the order in which they run.

    Of the text encoder and of what runs once a prompt, those of a prompt of the usual length; no
    fallbacks.

    Raises:
        BadInput: malformed layer records, or a region that this version does not launch.
        VerificationFailed: ``layers.json`` differs from its hash.
    """
    manifest, gpu = bundle.manifest, rates_of(bundle.manifest.target)
    layers = bundle_layers(bundle)
    found: list[Kernel] = []
    for name, engine in manifest.engines.items():
        found += engine_kernels(name, engine, layers[name], gpu)
        for between, region in manifest.regions.items():
            if region.after == name:
                found += region_kernels(between, region, gpu)
    return found


def engine_kernels(
    name: str, engine: Engine, records: Sequence[LayerRecord], gpu: GpuRates
) -> list[Kernel]:
    """The kernels of an engine."""
    size = usual_size(engine)
    return [
        Kernel(
            name=record.name,
            place=name,
            component=engine.component,
            runs=engine.runs,
            kind=record.kind,
            dtype=record.precision,
            nodes=record.nodes,
            reads=tuple(tensor.name for tensor in record.inputs),
            writes=tuple(tensor.name for tensor in record.outputs),
            weight_bytes=sum(tensor.bytes() for tensor in record.constants),
            cost=kernel_cost(record, gpu, size),
            block=block_of(record.nodes),
        )
        for record in usual_records(engine, records)
        if record.kind != "host"
    ]


def region_kernels(name: str, region: Region, gpu: GpuRates) -> list[Kernel]:
    """The kernels that the runtime launches for a region."""
    return [kernel for node in region.nodes for kernel in _launched(name, region, node, gpu)]


def _launched(name: str, region: Region, node: RegionNode, gpu: GpuRates) -> list[Kernel]:
    specs = {spec.name: spec for spec in region.tensors}
    constants = {spec.name for spec in region.constants}
    launches = region_op(node, specs).on(gpu.sms).launches
    # Between the launches of a node lies its workspace, which has no name.
    between = [f"{node.outputs[0]}/launch_{index}" for index in range(1, len(launches))]
    reads = [tuple(n for n in node.inputs if n not in constants), *((each,) for each in between)]
    writes = [*((each,) for each in between), node.outputs]
    return [
        Kernel(
            name=f"{node.op}/{launch.name}" if len(launches) > 1 else node.op,
            place=name,
            component=region.component,
            runs="step",
            kind="attention" if launch.operations else OWN,
            dtype=launch.rate or specs[node.outputs[0]].dtype,
            nodes=node.outputs,
            reads=reads[index],
            writes=writes[index],
            weight_bytes=0,
            cost=launch_cost(launch, gpu),
            block=block_of(node.outputs),
        )
        for index, launch in enumerate(launches)
    ]


def block_of(names: Iterable[str]) -> int | None:
    """Block of the transformer that most of these nodes or tensors are of; None without one.

    Where two blocks have as many, the later one.
    """
    counts = Counter(int(match[1]) for name in names if (match := _BLOCK.search(name)))
    return max(counts, key=lambda block: (counts[block], block)) if counts else None


def by_block(kernels: Iterable[Kernel]) -> Mapping[int, Cost]:
    """Cost of each block of the transformer in one denoising step."""
    sums: dict[int, Cost] = {}
    for kernel in kernels:
        if kernel.block is not None and kernel.runs == "step":
            sums[kernel.block] = sums.get(kernel.block, Cost()) + kernel.cost
    return dict(sorted(sums.items()))
