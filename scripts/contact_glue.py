"""The kernels between two GEMMs on the GPU at hand: an item of first_contact.py.

Every kind at the boundary shapes and at full size against its reference on the same GPU; as a CUDA
graph; and its time beside a copy that reads and writes as many bytes, measured in turns.
"""

from __future__ import annotations

import hashlib
import statistics
from pathlib import Path
from typing import Any

import torch
from cuda_timing import capture, milliseconds
from figure_sources import GLUE, ROOT, sources

from fastwan.errors import EnvironmentLacks
from fastwan.plugins.loader import PluginLibrary
from fastwan.plugins.regions.cross_attention import CrossAttention, CrossAttributes
from fastwan.plugins.regions.gelu_quantize import GeluQuantize
from fastwan.plugins.regions.glue import GlueOp
from fastwan.plugins.regions.norm_quantize import NormQuantize
from fastwan.plugins.regions.quantize import Quantize
from fastwan.plugins.regions.residual_norm import ResidualNorm
from fastwan.plugins.regions.residual_norm_quantize import NormAttributes, ResidualNormQuantize
from fastwan.quality.region_figures import difference
from fastwan.quality.selftest.glue import glue_inputs, glue_outputs

ROWS, WIDTH, FFN = 32768, 1536, 8960
_ROUNDS, _REPEATS = 5, 20
_RAGGED = ((1, 16), (3, 48), (17, 240), (255, 256), (129, 8960))

_TWELVE = CrossAttributes(12, 1e-6, 128**-0.5)
_ONE, _PLAIN = NormAttributes(1e-6, add_one=True), NormAttributes(1e-6, add_one=False)

FULL: tuple[GlueOp, ...] = (
    GeluQuantize(ROWS, FFN),
    Quantize(ROWS, WIDTH),
    ResidualNormQuantize(ROWS, WIDTH, _ONE, gated=True),
    NormQuantize(ROWS, WIDTH, _ONE),
    ResidualNorm(ROWS, WIDTH, _ONE, gated=True),
    CrossAttention(ROWS, WIDTH, 64, _TWELVE),
    CrossAttention(ROWS, WIDTH, 512, _TWELVE),
)
BOUNDARIES: tuple[GlueOp, ...] = (
    *(kind(rows, columns) for kind in (GeluQuantize, Quantize) for rows, columns in _RAGGED),
    ResidualNormQuantize(1, 128, _ONE, gated=False),
    ResidualNormQuantize(129, WIDTH, _PLAIN, gated=False),
    ResidualNormQuantize(257, 1664, _ONE, gated=True),
    ResidualNormQuantize(7, 5120, _PLAIN, gated=True),
    NormQuantize(1, 128, _ONE),
    NormQuantize(257, 1664, _PLAIN),
    ResidualNorm(1, 128, _PLAIN, gated=False),
    ResidualNorm(257, 1664, _ONE, gated=True),
    CrossAttention(1, WIDTH, 64, _TWELVE),
    CrossAttention(129, WIDTH, 512, _TWELVE),
    CrossAttention(130, 128, 128, CrossAttributes(1, 1e-6, 128**-0.5)),
    GeluQuantize(17, 240, scaled=True),
    ResidualNormQuantize(129, WIDTH, _PLAIN, gated=True, scaled=True),
    CrossAttention(129, WIDTH, 512, _TWELVE, scaled=True),
)


class Node:
    """One node with random inputs on the GPU."""

    def __init__(self, library: PluginLibrary, op: GlueOp) -> None:
        self.library, self.op = library, op
        self.inputs, self.outputs = glue_inputs(op, "cuda"), glue_outputs(op, "cuda")

    def run(self) -> None:
        stream = torch.cuda.current_stream().cuda_stream
        given, out = ([x.data_ptr() for x in xs] for xs in (self.inputs, self.outputs))
        self.library.enqueue(self.op, given, out, 0, 0, stream)

    def difference(self) -> float:
        """How far it is from the reference, to be held to its `limit`."""
        self.run()
        torch.cuda.synchronize()
        return difference(self.op, self.outputs, self.op.reference(*self.inputs))


def replayed(node: Node) -> bool:
    """Whether the node as a CUDA graph writes what it writes enqueued."""
    node.run()
    direct = [x.view(torch.uint8).clone() for x in node.outputs]
    graph, _ = capture(node.run)
    for out in node.outputs:
        out.view(torch.uint8).fill_(0x5A)
    graph.replay()
    torch.cuda.synchronize()
    pairs = zip(direct, node.outputs, strict=True)
    return all(torch.equal(x, out.view(torch.uint8)) for x, out in pairs)


def times(node: Node) -> dict[str, Any]:
    """The kernel and a copy of as many bytes, in turns so that both see the same clocks."""
    (launch,) = node.op.launches
    source = torch.empty(launch.bytes_moved // 2, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    kernel, copy = [], []
    for _ in range(_ROUNDS):
        kernel.append(milliseconds(node.run, _REPEATS))
        copy.append(milliseconds(lambda: target.copy_(source), _REPEATS))
    kernel_ms, copy_ms = statistics.median(kernel), statistics.median(copy)
    return {
        "bytes": launch.bytes_moved,
        "kernel_ms": kernel_ms,
        "copy_of_as_many_bytes_ms": copy_ms,
        "gb_per_s": launch.bytes_moved / kernel_ms / 1e6,
        "copy_gb_per_s": launch.bytes_moved / copy_ms / 1e6,
        "share_of_copy": copy_ms / kernel_ms,
    }


def library_of_this_gpu() -> PluginLibrary:
    """The library for Blackwell GPUs, whose glue has code for every GPU from 8.0 on; on compute
    capability 9.0 the emulated one, whose glue is the same, where that one is not built.

    Raises:
        EnvironmentLacks: neither is built, or the GPU is older.
    """
    capability = torch.cuda.get_device_capability()
    if capability < (8, 0):
        raise EnvironmentLacks("the glue needs compute capability 8.0", fix="use a later GPU")
    try:
        return PluginLibrary()
    except EnvironmentLacks:
        if capability != (9, 0):
            raise
        return PluginLibrary(emulated=True)


def check() -> dict[str, Any]:
    """Every kind and shape.

    Raises:
        AssertionError: an output is not that of the reference, or a replay differs.
    """
    library = library_of_this_gpu()
    differences, failed = {}, []
    for op in (*BOUNDARIES, *FULL):
        differences[str(op)] = found = Node(library, op).difference()
        failed += [str(op)] * (not found <= op.limit)
        print(op, found, flush=True)
    if failed:
        raise AssertionError(f"not the reference's: {failed} of {differences}")
    timed = {}
    for op in FULL:
        node = Node(library, op)
        if not replayed(node):
            raise AssertionError(f"{op}: a replay differs from the enqueued kernel")
        timed[str(op)] = times(node)
        print(op, timed[str(op)], flush=True)
    return {
        "differences": differences,
        "full_size": timed,
        "times": f"median of {_ROUNDS} medians of {_REPEATS}, kernel and copy in turns",
        "library": {
            "build": library.build_info,
            "sha256": hashlib.sha256(Path(library.path).read_bytes()).hexdigest(),
        },
        "sources": sources(ROOT, GLUE),
    }
